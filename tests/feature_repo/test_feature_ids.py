"""Two forms of an id: SQL finds them, `difference` names what they are apart by; ids that differ otherwise are two."""

from pathlib import Path

import pandas as pd
import pytest

from campaign import StoreError
from feature_repo.duck import connect
from feature_repo.ids import difference, ids_like, plain_sql


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("0010001", "10001", "leading zeros"),
        ("10001.0", "10001", "a trailing .0"),
        ("AB1", "ab1", "other case"),
        ("\t10001 ", "10001", "white space"),
        ("007.00", "7", "a trailing .0 and leading zeros"),
        ("0", "000", "leading zeros"),
        ("10001", "10001", ""),
        ("10001", "1001", None),
        ("1.05", "1.5", None),
        ("u001", "u1", None),
        ("0.5", "5", None),
    ],
)
def test_forms_of_an_id(one: str, other: str, said: str | None) -> None:
    with connect() as con:
        same = con.execute(f"SELECT {plain_sql('$1')} = {plain_sql('$2')}", [one, other]).fetchall()[0][0]
    assert same == (said is not None)
    if same:
        assert difference(one, other) == difference(other, one) == said


def test_ids_like_gives_the_same_id_first_and_an_example(tmp_path: Path) -> None:
    file = tmp_path / "it's a snapshot.parquet"
    pd.DataFrame({"user_id": ["007", "7", "8"]}).to_parquet(file)
    assert ids_like(file, "7") == (["7", "007"], "007")
    assert ids_like(file, "'") == ([], "007")
    file.write_text("torn")
    with pytest.raises(StoreError, match=r"snapshot\.parquet cannot be read"):
        ids_like(file, "7")
