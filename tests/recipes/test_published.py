"""A page is not made from fewer runs than it was made of."""

import pytest

from recipes.bench.published import refuse_to_lose_rows


def test_fewer_runs_are_refused_and_as_many_are_not(tmp_path):
    published = tmp_path / "page.csv"
    refuse_to_lose_rows(published, 0)
    published.write_text("run,loss\n1,0.5\n2,0.4\n")
    refuse_to_lose_rows(published, 2)
    with pytest.raises(SystemExit, match="has 2 rows, and the runs that are here make 1"):
        refuse_to_lose_rows(published, 1)
