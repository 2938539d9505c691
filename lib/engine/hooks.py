"""Forward hooks that are always removed, and the tensors they see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

Registration = tuple[torch.nn.Module, str, Callable]  # a module, "before" or "after", a function


@contextmanager
def hooks(*registrations: Registration):
    """Forward hooks for the length of a block: (module, "before" or "after", function); always removed.

    A function before a module gets (module, args, kwargs), one after it (module, args, output). They run ahead of hooks
    that are already there, so that transformers' own recording of hidden states sees what they write.
    """
    handles = []
    try:
        for module, when, function in registrations:
            if when == "before":
                handle = module.register_forward_pre_hook(function, with_kwargs=True, prepend=True)
            else:
                handle = module.register_forward_hook(function, prepend=True)
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_input(module: torch.nn.Module, visit: Callable[[Tensor], Tensor]) -> Registration:
    """Replaces the first input of a module, positional or `hidden_states`, by what `visit` makes of it."""

    def before(module, args, kwargs):
        if args:
            return (visit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": visit(kwargs["hidden_states"])}

    return module, "before", before


def on_output(module: torch.nn.Module, visit: Callable[[Tensor], Tensor]) -> Registration:
    """Replaces the output of a module, or its first part, by what `visit` makes of it."""

    def after(module, args, output):
        if isinstance(output, Tensor):
            return visit(output)
        return (visit(output[0]), *output[1:])

    return module, "after", after


def first_output(output) -> Tensor:
    """What a module gives, without the attention weights and the like that may come with it."""
    return output if isinstance(output, Tensor) else output[0]
