"""Pictures of lines: entities, places, background."""

from tiny import tiny

from lib.analysis.line_images import LineImages
from lib.stimuli import scenes


def test_lines_know_what_stands_where():
    vlm = tiny("reference")
    triples = scenes.ordered_triples("squares", vlm.grid)[:3]
    shown = LineImages.of(vlm, "squares", [*triples, (None, triples[0][0], None)], "vertical")
    assert shown.entities.tolist() == [[0, 1, 2], [0, 1, 3], [0, 1, 4], [-1, 0, -1]]
    assert shown.images.shape[:2] == (4, vlm.grid.side**2)
    assert shown.objects.image.tolist().count(3) == vlm.grid.entity**2  # one entity in the last picture
    assert set(shown.objects.place[shown.objects.image == 3]) == {1}
    assert len(shown.background) == vlm.grid.side**2 - 3 * vlm.grid.entity**2
