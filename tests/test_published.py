import pytest

from bench.pages import DOCS
from bench.published import ROWS, WITHIN, Row, section


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if not row.source.unknown],
    ids=lambda row: f"{row.source.gpu}, {row.model}, {row.bits}, {row.batch} x {row.tokens}",
)
def test_estimate_is_near_what_others_measured(row: Row) -> None:
    assert row.ratio == pytest.approx(1, abs=WITHIN)


def test_page_is_up_to_date() -> None:
    assert (DOCS / "memory.md").read_text(encoding="utf-8").endswith("\n".join(["", *section()]) + "\n")
