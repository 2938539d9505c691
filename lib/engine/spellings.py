"""Which tokens count as an answer: the spellings of a word that a tokenizer writes as one token.

A spelling is the word in lower case or capitalised, with or without a leading space. Tokenizers differ in which of
these they hold: Pixtral's has " bomb" and no "bomb". Spellings of more than one token cannot be the next token, so
they are dropped; a word of which none remains cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib.errors import UserError


@dataclass(frozen=True)
class Spellings:
    """Token ids of a word, none twice, and the spellings that were dropped because they take several tokens."""

    ids: tuple[int, ...]
    dropped: tuple[str, ...] = ()


def spellings(tokenizer, word: str, model: str = "this model") -> Spellings:
    """The spellings of a word that are one token each; UserError where none is."""
    bare = word.strip()
    capital = bare[:1].upper() + bare[1:]
    forms = dict.fromkeys((bare.lower(), capital, " " + bare.lower(), " " + capital))
    single = {form: _single(tokenizer, form) for form in forms}
    ids = tuple(dict.fromkeys(i for i in single.values() if i is not None))
    if not ids:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(bare.lower(), add_special_tokens=False)["input_ids"])
        raise UserError(
            f"The word {bare!r} is not one token for {model} in any spelling: {bare.lower()!r} becomes {pieces}. "
            "Choose another word."
        )
    return Spellings(ids, tuple(form for form, i in single.items() if i is None))


def _single(tokenizer, form: str) -> int | None:
    ids = tokenizer(form, add_special_tokens=False)["input_ids"]
    if len(ids) > 1 and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]  # sentencepiece writes a leading space as a piece of its own
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None
