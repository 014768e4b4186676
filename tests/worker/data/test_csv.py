"""What a table becomes, and which tables are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worker.data import csv_table

from .conftest import Reading


def table(rows: int, fault: dict[int, str] | None = None) -> str:
    """A table of columns a, b and a label of three classes; `fault` replaces rows, counted from 1."""
    lines = [f"{row}.5,{row % 7},{row % 3}" for row in range(1, rows + 1)]
    for row, line in (fault or {}).items():
        lines[row - 1] = line
    return "a,b,label\n" + "\n".join(lines) + "\n"


def test_columns_hold_the_cells(reading: Reading) -> None:
    dataset, folder = reading.csv("a,kind,b\n1,oak,1e-3\n-2.5,ash,.5\n+3,oak,7.\n", label="kind")
    assert np.load(folder / "x.npy").tolist() == np.array([[1, 1e-3], [-2.5, 0.5], [3, 7]], np.float32).tolist()
    assert np.load(folder / "y.npy").tolist() == [1, 0, 1]
    assert dataset["target"] == {"classes": {"count": 2, "names": ["ash", "oak"], "rows": [1, 2]}}
    assert dataset["input_names"] == ["a", "b"] and dataset["label_name"] == "kind" and dataset["warnings"] == []


def test_class_names_are_in_the_order_of_their_code_points(reading: Reading) -> None:
    dataset, folder = reading.csv("a,label\n1,b\n2,Z\n3,\u00e9\n4,a b\n5,b\n")
    assert dataset["target"]["classes"]["names"] == ["Z", "a b", "b", "\u00e9"]
    assert np.load(folder / "y.npy").tolist() == [2, 0, 3, 1, 2]


def test_whole_numbers_are_classes_and_others_are_numbers(reading: Reading) -> None:
    assert reading.csv("a,label\n1,1\n2,0\n3,01\n")[0]["target"]["classes"] == {"count": 2, "names": [], "rows": [1, 2]}
    dataset, folder = reading.csv("a,label\n1,1\n2,0.25\n3,-7\n")
    assert dataset["target"] == {"numbers": {"width": 1}} and np.load(folder / "y.npy").tolist() == [[1], [0.25], [-7]]
    assert "write integers" in reading.csv("a,label\n1,1.0\n2,0.0\n")[0]["warnings"][0]


def test_a_spreadsheets_byte_order_mark_and_quotes_leave_no_trace(reading: Reading) -> None:
    content = b'\xef\xbb\xbflabel,"Country Name","says ""x"""\r\n0,1,"2.5"\r\n1,3,4\r\n'
    dataset, folder = reading.csv(content)
    assert dataset["label_name"] == "label" and dataset["input_names"] == ["Country Name", 'says "x"']
    assert np.load(folder / "x.npy").tolist() == [[1, 2.5], [3, 4]]


def test_a_last_line_without_its_end_is_a_row(reading: Reading) -> None:
    assert reading.csv("a,label\n1,0\n2,1")[0] == reading.csv("a,label\r\n1,0\r\n\r\n2,1\r\n")[0]


def test_a_stated_dialect_is_read(reading: Reading) -> None:
    content = "# made by hand\n# units: cm\na;b;label\n3,5;1e-3;x\n-,25;2;y\n"
    _, folder = reading.csv(content, delimiter=";", decimal=",", skip_lines=2)
    assert np.load(folder / "x.npy").tolist() == np.array([[3.5, 1e-3], [-0.25, 2]], np.float32).tolist()


@pytest.mark.parametrize(
    ("content", "options", "remedy"),
    [
        ("a;b;label\n3,5;1;x\n", {}, "--delimiter ';' --decimal ,"),
        ("a;b;label\n3.5;1;x\n", {}, "--delimiter ';'"),
        ("a\tb\tlabel\n3.5\t1\tx\n", {}, "--delimiter $'\\t'"),
        ("#1\n#2\n#3\n#4\n#5\n#6\na;b;label\n3,5;1.204;x\n", {}, "--delimiter ';' --decimal , --skip-lines 6"),
        ("# of plants, 1936\na,b,label\n3.5,1,x\n", {}, "--skip-lines 1"),
        ("a,b,label\n3.5,1,x\n", {"delimiter": ";"}, "--delimiter ','"),
        ("a;b;c\n3,5;1;x\n", {}, "--delimiter ';' --decimal ,"),
        ("a,label\n1,0\n", {"decimal": ","}, "another --delimiter or --decimal"),
    ],
)
def test_another_dialect_is_refused_with_what_to_state(
    reading: Reading, content: str, options: dict[str, Any], remedy: str
) -> None:
    (violation,) = reading.refused(lambda: reading.csv(content, **options))
    assert violation.reason == "CSV_DIALECT" and violation.remedy.endswith(remedy)


def test_thousands_separators_and_decimal_commas_are_never_misread(reading: Reading) -> None:
    (violation,) = reading.refused(lambda: reading.csv('a,label\n"1,204",0\n2,1\n'))
    assert violation.place == "column 'a', row 1 (line 2)" and violation.value == "'1,204'" and "thousands" in violation.remedy
    (violation,) = reading.refused(lambda: reading.csv("a;label\n1.204;0\n2;1\n", delimiter=";", decimal=","))
    assert violation.reason == "NOT_A_NUMBER" and "--decimal ." in violation.remedy
    (violation,) = reading.refused(lambda: reading.csv("a;label\n1.204,5;0\n2;1\n", delimiter=";", decimal=","))
    assert "thousands separators are not read" in violation.remedy


@pytest.mark.parametrize(
    "cell", ["1_000", "0x10", "1e", "e5", "--1", "1 2", "\u0661", "12px", "1.2.3", "True", "1\u00a0000", "."]
)
def test_numbers_are_read_strictly(reading: Reading, cell: str) -> None:
    (violation,) = reading.refused(lambda: reading.csv(table(9, {5: f"{cell},1,2"})))
    assert violation.place == "column 'a', row 5 (line 6)" and violation.reason == "NOT_A_NUMBER"


def test_ragged_rows_are_named_with_counts(reading: Reading) -> None:
    first, second = reading.refused(lambda: reading.csv(table(40, {17: "1,2,0,9", 30: "1"})))
    assert (first.place, first.value, first.reason) == ("row 17 (line 18)", "4 fields", "RAGGED_ROW")
    assert second.place == "row 30 (line 31)" and second.remedy.startswith("the header names 3")


def test_line_breaks_inside_quotes_count_as_lines_not_rows(reading: Reading) -> None:
    (violation,) = reading.refused(lambda: reading.csv('a,label\n"\n1",y\n2,z\n3,z,9\n4,w\n'))
    assert violation.place == "row 3 (line 5)"
    forty = table(50, {40: '"\n41.5",3,1', 45: "1,2"})
    assert reading.refused(lambda: reading.csv(forty))[0].place == "row 45 (line 47)"
    assert reading.csv(table(50, {40: '"\n41.5",3,1'}))[0]["rows"] == 50


def test_text_in_number_columns_is_told_once_a_column(reading: Reading) -> None:
    violations = reading.refused(lambda: reading.csv(table(50, {7: "oops,2,1", 9: "oops,1,1", 12: "1,two,0", 13: "1,2,0,4"})))
    assert [violation.place for violation in violations] == [
        "row 13 (line 14)",
        "column 'a', row 7 (line 8)",
        "column 'b', row 12 (line 13)",
    ]
    assert violations[1].value == "'oops' (text in 2 rows in all)"


def test_cells_that_are_empty_or_not_finite_are_counted(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "BLOCK_VALUES", 3000)
    fault = {100 * n: ",1,0" for n in range(1, 9)} | {5000: "1,inf,0", 9000: "nan,2,1", 9001: "1e39,2,1", 9002: "NA,2,1"}
    violations = reading.refused(lambda: reading.csv(table(10_000, fault)))
    found = {(violation.place, violation.reason): violation.value for violation in violations}
    assert found == {
        ("column 'a'", "EMPTY_CELLS"): "an empty cell in rows 100 (line 101), 200 (line 201), 300 (line 301), 400 (line 401), "
        "500 (line 501) (9 in all)",
        ("column 'a'", "NOT_FINITE"): "nan in row 9000 (line 9001)",
        ("column 'b'", "NOT_FINITE"): "inf in row 5000 (line 5001)",
        ("column 'a'", "OUT_OF_RANGE"): "1e39 in row 9001 (line 9002)",
    }


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        ("", "NO_ROWS", "header"),
        ("a,b,label\n", "NO_ROWS", "rows"),
        ("a,a,label\n1,2,0\n", "COLUMN_NAMES", "the name 'a' for columns 1, 2"),
        (",b,label\n0,2,0\n", "COLUMN_NAMES", "column 1 without a name"),
        ("1,2,0\n3,4,1\n", "COLUMN_NAMES", "the first line must name the columns"),
        ("label\n0\n1\n", "COLUMN_NAMES", "at least one column of inputs"),
        ("a,Label\n1,0\n", "LABEL_COLUMN_MISSING", "'a', 'Label'; is it 'Label'?"),
        ("a,b,species\n1,2,0\n", "LABEL_COLUMN_MISSING", "'a', 'b', 'species'; the label may be 'species'?"),
        ("a,label\n1,x\n2,x\n", "ONE_CLASS", "'x' in every row"),
        ("a,label\n1,0\n2,0\n", "ONE_CLASS", "the label 0 in every row"),
        ("a,label\n1,0\n", "ONE_CLASS", "the label 0 in every row"),
        ("a,label\n1,.5\n2,.5\n", "CONSTANT_LABEL", "0.5 in every row"),
        ("a,label\n1,-1\n2,1\n", "LABELS_NEGATIVE", "labels -1, 1; labels start at 0"),
        ("a,label\n1,1\n2,2\n", "LABELS_GAP", "labels 1, 2; labels start at 0: subtract 1"),
        ("a,label\n1,0\n2,192\n", "LABELS_GAP", "no row has 1, 2, 3 and 188 more"),
        ("a,label\n1,0\n2,x\n", "LABELS_MIXED", "text ('x' in row 2 (line 3)) among numbers (0 in row 1 (line 2))"),
        ("a,label\n1,0\n2,\n", "EMPTY_CELLS", "an empty cell in row 2 (line 3)"),
        ("a,label\n1,0.5\n2,nan\n", "NOT_FINITE", "nan in row 2 (line 3)"),
        ('a,label\n1,0\n2,"1\n3,0\n', "CSV_QUOTES", "line 3: got a quote that is not closed"),
        ('a,label\n1,0\n"2"x,1\n', "CSV_QUOTES", "line 3: got text after a closing quote"),
        (b"a,label\n1,\xe9\n", "NOT_UTF8", "line 2, byte 10 of the file: got byte 0xe9"),
        (b"\xef\xbb\xbfa,label\n1,\xe9\n", "NOT_UTF8", "line 2, byte 13 of the file"),
        (b"a,label\n1,0\n2,\0\n", "NOT_TEXT", "line 3, byte 14 of the file: got a NUL byte"),
        ("a,label\n1,0\n".encode("utf-16"), "NOT_UTF8", "UTF-16"),
        (b"PK\x03\x04....", "NOT_TEXT", "not compressed"),
        (b"a" * (4 << 20) + b"\n", "LINE_TOO_LONG", ""),
        ("a,label\n1,0\n2,\x1b[31m\n3,x\n", "LABELS_MIXED", "\\x1b"),
        (",".join(f"{n}{'a' * 200}" for n in range(6000)) + "\n", "TOO_LARGE", "6000 long names"),
        ("a,label\n" + "".join(f"1,{n}{'a' * 200}\n" for n in range(6000)), "TOO_LARGE", "6000 long names"),
        ("a,label\n2,\x1b[31m\n3,x\n", "CLASS_NAMES", "\\x1b"),
        ("a,label\n" + "".join(f"1,c{n}\n" for n in range(65_600)), "TOO_MANY_CLASSES", "more than 65536 different names"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(reading: Reading, content: str | bytes, reason: str, says: str) -> None:
    (violation,) = reading.refused(lambda: reading.csv(content))
    assert violation.reason == reason and says in str(violation)


def test_a_constant_input_column_is_a_warning(reading: Reading) -> None:
    dataset, _ = reading.csv("a,b,label\n1,5,0\n2,5,1\n")
    assert dataset["warnings"] == ["1 of 2 input columns never change and teach nothing: 'b'"]


def test_the_digest_is_that_of_the_values_and_names(reading: Reading) -> None:
    plain = reading.csv("a,label\n1,x\n2.5,y\n")[0]["digest"]
    assert plain == reading.csv('"a","label"\r\n1.0,"x"\r\n 25e-1 , y\r\n')[0]["digest"]
    assert plain == reading.csv("a;label\n1;x\n2,5;y\n", delimiter=";", decimal=",")[0]["digest"]
    assert plain != reading.csv("b,label\n1,x\n2.5,y\n")[0]["digest"]


def test_blocks_do_not_show(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reading.csv(table(1000))[0]
    monkeypatch.setattr(csv_table, "BLOCK_VALUES", 7)
    assert reading.csv(table(1000))[0] == whole
