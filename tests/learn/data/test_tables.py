"""Tables as people have them: what is understood, what is asked for, and what is said about what cannot be read."""

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pytest

from funcbp import data
from funcbp.learn.data import unfold

pandas = pytest.importorskip("pandas")

RNG = np.random.default_rng(0)
A, B = np.round(RNG.normal(size=(2, 40)), 2)
KIND = np.where(A + B > 0, "dog", "cat")
LABEL = (A + B > 0).astype(int)
FRAME = pandas.DataFrame({"a": A, "b": B, "label": LABEL})
TITLED = pandas.DataFrame([["Report of March", None, None], ["a", "b", "label"], [0.5, 1, 0]])
HOLED = pandas.DataFrame({"a": [0.5, None], "label": [0, 1]})


def text(*columns, header="", sep=",", end="\n"):
    rows = [sep.join(map(str, row)) for row in zip(*columns, strict=True)]
    return end.join([header] * bool(header) + rows) + end


def comma(a):
    return [str(v).replace(".", ",") for v in a]


def packed(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def check(d, classes=("0", "1"), truth=LABEL):
    """The inputs are a and b, and the classes those of the truth, row for row."""
    assert d.classes == classes and d.n_inputs == 2
    x = d.inputs.undo(np.concatenate([d.x_train, d.x_validation, d.x_test]).astype(float))
    y = np.concatenate([d.y_train, d.y_validation, d.y_test])
    want = sorted(zip(A, B, truth, strict=True))
    np.testing.assert_allclose(sorted((*row, t) for row, t in zip(x, y, strict=True)), want, atol=1e-5)


def sheets(file, *frames):
    with pandas.ExcelWriter(file) as book:
        for i, frame in enumerate(frames):
            frame.to_excel(book, sheet_name=f"sheet {i}", index=False)


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(name, content)
    return file.getvalue()


def archive(**frames):
    """A zip archive of tables, as macOS packs them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, frame in frames.items():
            packed.writestr(f"folder/{name}.csv", frame.to_csv(index=False))
            packed.writestr(f"__MACOSX/folder/._{name}.csv", b"\0")
        packed.mkdir("folder")
    return file.getvalue()


READ = {  # content, options, and how the file is called
    "commas": ("t.csv", text(A, B, LABEL, header="a,b,label"), {}),
    "words for classes": ("t.csv", text(A, B, KIND, header="a,b,kind"), {"target": "kind"}),
    "a German spreadsheet's": (
        "t.csv",
        "\ufeff" + text(comma(A), comma(B), LABEL, header="a;b;Label", sep=";", end="\r\n"),
        {},
    ),
    "labels 0.0 and 1.0": ("t.csv", text(A, B, LABEL.astype(float), header="a,b,label"), {}),
    "labels true and false": ("t.csv", text(A, B, LABEL.astype(bool), header="a,b,label"), {}),
    "the class first, no names": ("t.csv", text(LABEL, A, B), {"target": 1}),
    "the target in the middle": ("t.csv", text(A, LABEL, B, header="a,Survived,b"), {}),
    "tabs": ("t.tsv", text(A, B, LABEL, header="a\tb\ty", sep="\t"), {}),
    "blanks": ("t.data", text(*(np.char.rjust(c.astype(str), 8) for c in (A, B, LABEL)), sep=" "), {"target": 3}),
    "an index without a name": ("t.csv", text(range(40), A, B, LABEL, header=",a,b,label"), {}),
    "an identifier": ("t.csv", text(range(1, 41), A, B, LABEL, header="PassengerId,a,b,label"), {}),
    "quotes": ("t.csv", text(A, B, [f'"{k}, a"' for k in KIND], header='"a, in cm",b,species'), {}),
    "latin letters of 1990": ("t.csv", text(A, B, np.char.add("é", KIND), header="a,b,class").encode("cp1252"), {}),
    "UTF-16": ("t.txt", text(A, B, LABEL, header="a\tb\tlabel", sep="\t").encode("utf-16"), {}),
    "empty lines": ("t.csv", "\n" + text(A, np.char.add(" ", B.astype(str)), LABEL, header="a, b ,y") + "\n,,\n", {}),
    "a comma at each line's end": ("t.csv", text(A, B, LABEL, [""] * 40, header="a,b,label,"), {}),
    "gzipped": ("t.csv.gz", gzip.compress(text(A, B, LABEL, header="a,b,label").encode()), {}),
    "parquet": ("t.parquet", packed(FRAME.to_parquet), {}),
    "parquet, the label as the rows' names": ("t.parquet", packed(FRAME.set_index("label").to_parquet), {}),
    "a spreadsheet": ("t.xlsx", packed(lambda file: FRAME.to_excel(file, index=False)), {}),
    "records": ("t.json", FRAME.to_json(orient="records"), {}),
    "records, a line each": ("t.jsonl", FRAME.to_json(orient="records", lines=True), {}),
    "question marks, left out": ("t.csv", text(A, B, LABEL, header="a,b,label") + "?,1,0\n", {"missing": "drop"}),
    "Excel's first line": ("t.csv", "sep=;\r\n" + text(comma(A), comma(B), LABEL, header="a;b;label", sep=";"), {}),
    "bars": ("t.csv", text(A, B, LABEL, header="a|b|label", sep="|"), {}),
    "R's names of the rows": ("t.txt", text([f'"{i}"' for i in range(40)], A, B, LABEL, header="a b y", sep=" "), {}),
    "UTF-32": ("t.csv", text(A, B, LABEL, header="a,b,label").encode("utf-32"), {}),
    "numbers of customers": ("t.csv", text(RNG.permutation(40) + 9000, A, B, LABEL, header="CustomerID,a,b,y"), {}),
    "records, a line each, called .json": ("t.json", FRAME.to_json(orient="records", lines=True), {}),
    "notes on the first sheet": ("t.xlsx", packed(lambda file: sheets(file, pandas.DataFrame(), FRAME)), {}),
    "the target counted with what is ignored": (
        "t.csv", text(KIND, A, B, LABEL, header="k,a,b,c"), {"ignore": ["k"], "target": 4}
    ),
    "bzip2": ("t.csv.bz2", bz2.compress(text(A, B, LABEL, header="a,b,label").encode()), {}),
    "xz": ("t.csv.xz", lzma.compress(text(A, B, LABEL, header="a,b,label").encode()), {}),
    "zip": ("t.csv.zip", archive(t=FRAME), {}),
    "zipped arrays": ("t.zip", zipped("t.npz", packed(lambda f: np.savez(f, x=FRAME[["a", "b"]], y=LABEL))), {}),
    "records, a line each, called .ndjson": ("t.ndjson", FRAME.to_json(orient="records", lines=True), {}),
    "an array": ("t.npy", packed(lambda f: np.save(f, FRAME.to_numpy())), {"target": 3}),
    "an array with fields": ("t.npy", packed(lambda f: np.save(f, FRAME.to_records(index=False))), {}),
    "a spreadsheet with macros": ("t.xlsm", packed(lambda file: FRAME.to_excel(file, index=False)), {}),
    "WEKA's": (
        "t.arff",
        "% by hand\n@relation t\n@attribute a real\n@attribute 'b' real\n@attribute class {cat,dog}\n@data\n"
        + text(A, B, KIND),
        {},
    ),
    "remarks above": ("t.csv", "# by hand, in March\n% of 2024\n\n" + text(A, B, LABEL, header="a,b,label"), {}),
    "a remark above UCI's test": ("t.data", "|1x3 Cross validator\n" + text(A, B, KIND, sep=", "), {"target": 3}),
    "numpy.savetxt with a header": ("t.txt", "# a b label\n" + text(A, B, LABEL, sep=" "), {"target": 3}),
    "names behind a mark": ("t.csv", text(A, B, LABEL, header="# a,b,label"), {}),
    "R's names of cars": ("t.csv", text([f"Mazda {i}" for i in range(40)], A, B, LABEL, header='"",a,b,label'), {}),
    "a shuffled index": ("t.csv", FRAME.sample(frac=1, random_state=0).to_csv(), {}),
    "one value only": ("t.csv", text(A, [7] * 40, B, ["x"] * 40, LABEL, header="a,c,b,d,label"), {}),
    "a number of each row": ("t.csv", text(range(1, 41), A, B, LABEL, header="#,a,b,label"), {}),
    "a column not wanted": ("t.csv", text(A, KIND, B, LABEL, header="a,kind,b,label"), {"ignore": ["Kind"]}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options"), READ.values(), ids=READ)
def test_tables_as_people_have_them(tmp_path, name, content, options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    d = data.read(path, **options)
    assert d.name == "t" and sorted(np.concatenate([d.y_train, d.y_validation, d.y_test])) == sorted(LABEL)
    check(d, d.classes)
    assert d.classes in (("0", "1"), ("cat", "dog"), ("cat, a", "dog, a"), ("écat", "édog"), ("False", "True"))
    assert d.about[0].startswith("Target ") and f"{d.classes[1]} {LABEL.sum()}" in d.about[0]


def said(tmp_path, content, name="table.csv", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(data.DataError) as error:
        data.read(path, **options)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and (str(path) in text or "table has" in text)
    return text


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "table.csv is empty"),
        ("\n\n , \n", {}, "table.csv is empty"),
        ("a,b,y\n", {}, "has names of columns, and no line below them"),
        ("1,2,0\n3,4,1\n5,6\n", {}, "table.csv, line 3: 2 values, where line 1 has 3"),
        ("a,b,y\n1,2,0\n\n3,4,1,9\n", {}, "table.csv, line 4: 4 values, where line 1 has 3"),
        ('1,2\n1,"2\n', {}, 'line 2: this is not CSV (a " opens a cell and never'),
        ('a,b,y\n1,2,0\n3,"4,1\n5,6,0\n', {}, 'table.csv, line 3: this is not CSV (a " opens a cell'),
        ("Report,,\na,b,y\n1,2,0\n", {}, "line 1: one value, 'Report', in 3 columns. If that is a title"),
        ('a,y\n1,"1,200.5"\n2,"2,100.0"\n', {}, "line 2, column 'y': '1,200.5' is not a number. A"),
        ("a,y\n" + "1,5%\n2,10%\n" * 9, {}, "line 2, column 'y': '5%' is not a number"),
        ("a,y\n" + "$1.50,0\n$2.00,1\n" * 9, {}, "line 2, column 'a': '$1.50' is not a number"),
        ("a,y\n1,2024-01-02\n2,2024-01-03\n", {}, "line 2, column 'y': '2024-01-02' is a date"),
        ("a,b,y\n1,2,0\n3,inf,1\n", {}, "table.csv, line 3, column 'b': inf is not a finite number"),
        ("a,b,y\n1,2,0\n\n1,red,0\n3,4,1\n", {}, "table.csv, line 4, column 'b': 'red' is not a number"),
        (text([f"1.{i:03d},5" for i in range(30)], LABEL[:30], header="a;y", sep=";"), {}, "'1.000,5' is not a number"),
        ("a,b,y\n1,,0\n1,NA,0\n2,3,\n", {}, "missing values: 2 in column 'b', 1 in column 'y'; the first is in line 2"),
        ("a,b,c\n1,2,0\n3,4,1\n", {}, "Which column of"),
        ("a,target,y\n1,2,0\n3,4,1\n", {}, "there are 'target' and 'y'"),
        ("1,2,x\n3,4,y\n1,2,x\n", {}, "column 1 (numbers 1 to 3); column 2 (numbers 2 to 4); column 3 (2 words: x, y)"),
        ("a,b,y\n1,2,0\n", {"target": "z"}, "has no column 'z'. The columns are 1 'a' (numbers 1 to 1); 2 'b'"),
        ("a,b,y\n1,2,x\n3,4,z\n", {"task": "regression"}, "holds words, such as 'x', and a regression needs numbers"),
        (text(range(60), range(60), [i % 25 for i in range(60)], header="a,b,y"), {}, "25 different whole numbers"),
        (text([f"w{i}" for i in range(30)], range(30), LABEL[:30], header="a,b,y"), {}, "holds 30 different words"),
        ("y\n1\n0\n", {}, "one column, and needs inputs and a target"),
        ("1,2,0\n3,4,1\n", {"target": 3}, "table has 2 examples"),
        (b"\0\1\2binary\0", {}, "is not a text file"),
        (b"PK\3\4 and more", {}, "not a text file but a zip archive: unpack it"),
        ("<!DOCTYPE html><html>", {}, "is a web page and no table"),
        ("by hand\na,b,y\n1,2,0\n", {}, "line 1 has 1. If that is a title or a comment, remove it"),
        ("a,b,y\n1,2,0\n# the end\n", {}, "line 3: 1 value, where line 1 has 3. If that is a title or a comment"),
        ("0 1:0.5 7:2\n1 1:3\n0 2:1 3:4\n", {}, "in the format of svmlight: make arrays of it: x, y = sklearn"),
        (text([f"{a} kg" for a in A], LABEL, header="a,y"), {}, f"'{A[0]} kg' is not a number"),
        (text([f"{a}°C" for a in A], LABEL, header="a,y"), {}, f"'{A[0]}°C' is not a number"),
        (text([f"1\xa0{i:03d}" for i in range(40)], LABEL, header="a,y"), {}, "'1\\xa0000' is not a number"),
        (text([f"{a} km/h" for a in A], LABEL, header="a,y"), {}, "empty. Or leave the column out by --ignore"),
        (text([f"{i} High Street" for i in range(40)], LABEL, header="a,y"), {}, "holds 40 different words"),
        (text(A, np.where(LABEL, "NA", "EU"), header="a,y"), {}, "(Empty cells, ?, NA, None, nan and null are"),
        (text([7] * 40, LABEL, header="a,y"), {}, "what was left out: column 'a', it holds '7' and nothing else"),
        ("a,b,y\n1,2,0,\n3,4,1,\n", {}, "line 2: 4 values, where line 1 has 3"),
        ("a b y\n1 2 0 5\n1 3 1 6\n", {}, "names 3 columns in line 1, and each row has 4 values"),
        ("a,y,y\n1,0,0\n2,1,1\n", {}, "more than one column 'y': leave out what would give it away by --ignore y.1"),
        ("a,b,y\n1,2,0\n", {"target": "y", "ignore": ["y"]}, "is to be learned, and --ignore (ignore=) leaves it out"),
        (text(["900", "1.100"] * 9, [0, 1] * 9, header="a;y", sep=";"), {}, "900 and 1.100, which may be 1100 or not"),
        (text([f"{i}%" for i in range(30)], LABEL[:30], header="a,y"), {}, "'0%' is not a number. A number is"),
        (text(A * 1e300, LABEL, header="a,y"), {}, "among its numbers, too large to be scaled"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_is_not_certain_is_said(tmp_path, content, options, message):
    assert message in said(tmp_path, content, **options)


@pytest.mark.parametrize("suffix", ["parquet", "xlsx", "json", "csv.gz"])
def test_files_that_are_not_what_their_name_says(tmp_path, suffix):
    text = said(tmp_path, b"\x1f\x8bPK\3\4 junk" if "gz" in suffix else b"PK\3\4 junk", f"t.{suffix}")
    assert "is not a table in" in text or "is a gzip file that is truncated or damaged" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv.zip", b"PK", "is a zip file that is truncated or damaged (File is not a zip file)"),
        (
            "t.csv.zip",
            archive(a=FRAME, b=FRAME),
            "holds 2 files (folder/a.csv, folder/b.csv), and one is read: unpack it",
        ),
        ("t.zip", archive(), "t.zip holds no file, and one is read"),
        ("t.zip", archive(a=FRAME).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), "needs a password"),
        ("t.csv.bz2", bz2.compress(text(A, B, LABEL).encode())[:-9], "is a bzip2 file that is truncated or damaged"),
        ("t.csv.xz", lzma.compress(text(A, B, LABEL).encode())[:-9], "is a xz file that is truncated or damaged"),
        ("t.tar.gz", b"\x1f\x8b", "is packed in a way that is not read here: unpack it"),
        ("t.csv.zst", b"(\xb5/\xfd", "is packed in a way that is not read here: unpack it"),
        (
            "t.mat",
            b"MATLAB 5.0",
            "a file of Matlab: make arrays of it: m = scipy.io.loadmat('t.mat'); numpy.savez('t.np",
        ),
        ("t.rds", b"X", "a file of R: make a table of it, in R: write.csv(readRDS('t.rds'), 't.csv', row.names=FALSE)"),
        (
            "t.pkl",
            b"X",
            "a pickle, and these can run programs: make a table of it: pandas.read_pickle('t.pkl').to_csv(",
        ),
        ("t.ods", b"PK", "a spreadsheet of LibreOffice: save it as .xlsx or .csv"),
        ("a9a", b"1 2:3", "A table of text in a file of another name: call it .csv"),
        ("t.json", '{"rows": [{"a": 1, "y": 0}]}', "has its records below 'rows'. What is read is a list of records"),
        (
            "t.json",
            FRAME.to_json(orient="split"),
            "What is read is a list of records, as of pandas' to_json(orient='re",
        ),
        (
            "t.npy",
            packed(lambda f: np.save(f, A)),
            "(its array is of shape [40]). What is read is an array of rows and",
        ),
        ("t.npy", packed(lambda f: np.save(f, np.array([[{}]]))), "is not a table in npy format (Object arrays cannot"),
        ("t.arff", "@relation r\n@attribute a string\n@data\nx\n", "not a table in arff format (String attributes not"),
        ("t.gz", b"PK", "is packed in a way that is not read here: unpack it"),
        ("t.xls", b"\xd0\xcf", "a spreadsheet in Excel's old format: save it as .xlsx or .csv"),
        ("t.json", '[{"a": [1, 2], "y": 0}, {"a": [3, 4], "y": 1}]', "holds lists or records, such as [1, 2]"),
        ("t.xlsx", packed(lambda f: FRAME.to_excel(f, startrow=2, index=False)), "has nothing in its first row"),
        ("t.xlsx", packed(lambda f: TITLED.to_excel(f, header=False, index=False)), "no name for column 2, which"),
        ("t.xlsx", packed(lambda f: HOLED.to_excel(f, index=False)), "the first is in row 3"),
    ],
)
def test_what_other_kinds_of_files_hold(tmp_path, name, content, message):
    assert message in said(tmp_path, content, name)


def test_what_unfolds_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(unfold, "MOST", 10_000)
    bomb = text(A, B, LABEL, header="a,b,label").encode() + b" " * 20_000
    assert "unfolds to more than" in said(tmp_path, gzip.compress(bomb), "t.csv.gz")
    assert "unfolds to more than" in said(tmp_path, packed(lambda f: np.savez_compressed(f, x=np.zeros(9999))), "t.npz")
    assert "unfolds to more than" in said(tmp_path, bz2.compress(bomb), "t.csv.bz2")
    assert "unfolds to more than" in said(tmp_path, lzma.compress(bomb), "t.csv.xz")
    assert "unfolds to more than" in said(tmp_path, zipped("t.csv", bomb), "t.zip")
    big = pandas.DataFrame({"a": np.zeros(9999), "label": np.zeros(9999)})
    assert "unfolds to more than" in said(tmp_path, packed(big.to_parquet), "t.parquet")


def test_words_and_missing_values_become_numbers(tmp_path):
    """Against the formula: indicators, the mean of what is known in the training part, standardised."""
    colours, size = np.array(["red", "green", "", "blue"] * 10), np.arange(40.0)
    sizes = [str(v) if i % 5 else "" for i, v in enumerate(size)]
    path = tmp_path / "t.csv"
    path.write_text(text(colours, sizes, size**2 + 0.5, header="colour,size,y"))
    d = data.read(path, missing="mean")
    assert d.columns == (data.Input("colour", ("blue", "green", "red")), data.Input("size", None))
    assert d.targets is not None and d.fills
    assert any("Put the mean in the place of 18 missing values" in line for line in d.about)
    row = np.sqrt(np.abs(d.targets.undo(d.y_train[:, 0]) - 0.5)).round().astype(int)
    known, there = colours[row] != "", row % 5 > 0
    for i, value in enumerate(("blue", "green", "red")):
        of = (colours[row] == value).astype(float)
        want = np.where(known, (of - of[known].mean()) / of[known].std(), 0)
        np.testing.assert_allclose(d.x_train[:, i], want, atol=1e-5)
    want = np.where(there, (row - row[there].mean()) / row[there].std(), 0)
    np.testing.assert_allclose(d.x_train[:, 3], want, atol=1e-5)


def test_the_task_is_judged_by_the_values(tmp_path):
    of = lambda y, **options: data.read_table(written(tmp_path, text(A, B, y, header="a,b,y")), **options).classes
    assert of(A * 3) is None and of(np.arange(40)) is None  # fractions; a number of its own for each
    assert of([-7, 3, 12, 3] * 10) == ("-7", "3", "12")
    assert of(LABEL, task="regression") is None
    assert of(np.arange(40) % 25, task="classification") == tuple(map(str, range(25)))
    assert of([0.5, 1.5] * 20, task="classification") == ("0.5", "1.5")


def written(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("p,x,s\ne,x,y\np,b,s\n" * 10, False),  # words below words, which come again
        ("name,colour\n" + "Tom,red\nAnn,blue\n" * 10, True),
        ("1,2,label\n" + "0.5,1,cat\n0.25,2,dog\n" * 10, True),  # names that are numbers
        ("1,2\n3,4\n" * 10, False),
    ],
)
def test_names_of_columns_are_told_from_data(tmp_path, content, named):
    from funcbp.learn.data.reading import load_table

    assert load_table(written(tmp_path, content)).named == named


def test_inputs_for_a_network_that_has_learned(tmp_path):
    columns = (data.Input("kind", ("cat", "dog")), data.Input("a", None))
    path = written(tmp_path, "a,other,kind\n1,x,dog\n2,y,cat\n")
    np.testing.assert_array_equal(data.read_inputs(path, columns, 3), [[0, 1, 1], [1, 0, 2]])
    np.testing.assert_array_equal(data.read_inputs(written(tmp_path, "1,2\n3,4\n"), None, 2), [[1, 2], [3, 4]])
    for content, message in (
        ("a,kind\n1,cow\n", "line 2, column 'kind': 'cow' is none of cat, dog"),
        ("kind\ncat\n", "has no column 'a', which the network was trained on"),
        ("a,kind\n1,cat\n,dog\n", "line 3: a value is missing, and the network was trained without --missing mean"),
        ("a,kind\nx,cat\ny,dog\n", "column 'a' holds words, and the network was trained on numbers"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.read_inputs(written(tmp_path, content), columns, 3)


@pytest.mark.parametrize(
    "date", ["2024-01-{}", "{}.1.2024", "1/{}/24", "2024-01-{} 12:30:00", "2024-01-{}T12:30:00Z", "{} January 2024"]
)
def test_dates_are_no_inputs(tmp_path, date):
    """Whether there are many or few of them, which would be words; and a version such as 1.2.3 is one."""
    for different in (3, 25):
        rows = "".join(f"{date.format(i % different + 1)},{i / 7},{'ab'[i % 2]}\n" for i in range(60))
        with pytest.raises(
            data.DataError, match=r"column 'when' holds dates, such as .* leave the column out by --ignore"
        ):
            data.read(written(tmp_path, "when,size,kind\n" + rows), target="kind")
    with pytest.raises(data.DataError, match=r"1 'when' \(dates: .*, \.\.\.\); 2 'size'"):
        data.read(written(tmp_path, "when,size,kind\n" + rows))
    rows = "".join(f"1.{i % 3}.2,{i / 7},{'ab'[i % 2]}\n" for i in range(60))
    assert data.read(written(tmp_path, "version,size,kind\n" + rows), target="kind").n_inputs == 4


def test_large_counts_are_in_groups_of_three(tmp_path):
    rows = "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(2400))
    assert data.read(written(tmp_path, "size,kind\n" + rows), target="kind").about[0].endswith("a 1,200, b 1,200")
