"""What is written in a CSV, TSV or JSON file arrives byte for byte, or the file or row is refused with the reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from config import DataConfig
from corpus.formats import open_corpus
from corpus.manifest import ManifestError, ManifestRow, Table


@pytest.fixture
def table_of(tmp_path):
    """The table of a manifest with this content."""

    def make(content: str | bytes, name: str = "m.csv", **settings) -> Table:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        data = DataConfig(cache_dir=str(tmp_path / "cache"), **settings)
        return open_corpus(str(path), data).index(data)

    return make


def rows_of(table: Table) -> list[ManifestRow]:
    return [row for task in table.tasks() for row in table.read(*task)]


def texts_of(table: Table) -> list[str]:
    return [str(row.transcript) for row in rows_of(table)]


PAD = [{"audio": "a.wav", "text": "x" * 1000}] * 11_500  # more than 10 MB, which some parsers read at a time
VALUES = [0, 1984, 1.5, "2020-01-01", "আমি", 'say "hi"', None, float("nan"), ["a"], {"a": 1}, True, "null", "\ud83d"]
EXPECTED = [
    "0", "1984", "1.5", "2020-01-01", "আমি", 'say "hi"', "", "", "transcript is a list, not text",
    "transcript is a dictionary, not text", "transcript is true or false, not text", "null",
    "transcript is damaged: it holds half of a character (a lone surrogate)",
]  # fmt: skip


@pytest.mark.parametrize("place", ["first", "last", "late"])
def test_a_json_value_stays_what_it_is_whatever_other_rows_hold(table_of, place):
    odd = [{"audio": "b.wav", "text": value, "speaker": number} for number, value in enumerate(VALUES)]
    rows = {"first": [*odd, *PAD[:2]], "last": [*PAD[:2], *odd], "late": [*PAD, *odd]}[place]
    table = table_of("".join(json.dumps(row) + "\n" for row in rows), "m.jsonl")
    found = texts_of(table)
    assert len(found) == table.rows == len(rows)
    begin = 0 if place == "first" else len(rows) - len(odd)
    assert found[begin : begin + len(odd)] == EXPECTED


@pytest.mark.parametrize(
    "content",
    [
        '[{"audio": "a", "text": "one"},\n {"audio": "b", "text": 2}]',
        '{"version": 1, "data": [{"audio": "a", "text": "one"}, {"audio": "b", "text": 2}]}',
        '{\n"audio": {"0": "a", "1": "b"},\n"text": {"0": "one", "1": 2}}',
        '{"audio": ["a", "b"], "text": ["one", 2]}',
        '\ufeff{"audio": "a", "text": "one", "words": [{"start": 0}]}\r\n\r\n{"audio": "b", "text": 2}\r\n',
        '{"audio": {"path": "a"}, "text": "one"}\n{"text": 2, "audio": {"path": "b"}}',
    ],
)
def test_every_way_to_write_rows_in_json_is_read(table_of, content):
    assert [(row.audio, row.transcript) for row in rows_of(table_of(content, "m.json"))] == [("a", "one"), ("b", "2")]


@pytest.mark.parametrize("row", ['{"audio": "a", "text": "one", "words": [{"start": 0}]}', '{"text": 1, "audio": "a"}'])
def test_a_single_row_of_json_is_a_row(table_of, row):
    assert len(rows_of(table_of(row, "m.jsonl"))) == 1


def test_a_column_that_only_later_rows_have_is_found(table_of):
    content = '{"note": 1}\n' * 3000 + '{"audio": "a", "sentence": "one"}\n'
    assert texts_of(table_of(content, "m.jsonl"))[-1] == "one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"audio": "a", "text": "b"}\n{"audio": "a", "text": "b\n', r"line 2 is not JSON: Unterminated string"),
        ("{'audio': 'a', 'text': 'b'}\n{'audio': 'a'}\n", "line 1 is not JSON"),
        ('{"audio": "a", "text": "b"}\n[1]\n', r"line 2 is not a JSON object \('\[1\]'\)"),
        ('{"audio": "a", "text": "b"}\n{"audio": "\xe9"}\n'.encode("latin-1"), "not UTF-8: .* in line 2"),
        ("[" * 100_000, "neither JSON lines nor JSON"),
        ("3", "expected a JSON object in each line"),
        ("", "holds no rows"),
    ],
)
def test_damaged_json_is_refused_with_its_line(table_of, content, message):
    with pytest.raises(ManifestError, match=message):
        rows_of(table_of(content, "m.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.csv", "audio,text\r\r\na,one\r\r\nb,two\r\r\n", ["one", "two"]),
        ("m.csv", "audio,text\ra,one\rb,two", ["one", "two"]),
        ("m.csv", "\ufeffaudio,text\r\n\r\na,one\r\n  \r\nb,two\r\n\x1a", ["one", "two"]),
        ("m.csv", ",audio,text\n0,a,one\n1,b,two\n", ["one", "two"]),
        ("m.tsv", "audio\ttext\t\na\tone\t\nb\ttwo\t\n", ["one", "two"]),
        ("m.csv", "audio,text\na,one,\nb,two,,\n", ["one", "two"]),
        ("m.csv", "Audio, Text\na,one\nb, two\n", ["one", "two"]),
        ("m.csv", "audio,text,text\na,one,uno\nb,two,dos\n", ["one", "two"]),
        ("m.csv", 'audio,text\na,"one\nor ""two"""\nb,"1\r\n2"\n', ['one or "two"', "1 2"]),
        ("m.csv", "audio,text\na,one\0\nb,two\n", ["one", "two"]),
        ("m.csv", "\ufeffaudio;text;duration\r\na;one, two;0,6\r\nb;two;0,6", ["one, two", "two"]),
        ("m.csv", "sep=;\naudio;text\na;one\nb;two\n", ["one", "two"]),
        ("m.csv", "audio|text\na|one, two\nb|two\n", ["one, two", "two"]),
        ("m.csv", "audio\ttext\na\tone\nb\ttwo\n", ["one", "two"]),
        ("m.tsv", 'audio\ttext\na\t"one\nb\ttwo "yes"\n', ['"one', 'two "yes"']),
        ("m.tsv", 'audio\ttext\na\t"one"\nb\ttwo\n', ['"one"', "two"]),
        ("m.tsv", 'audio\ttext\na\t"""one"" he said"\nb\ttwo\n', ['"one" he said', "two"]),
        ("m.tsv", 'audio\ttext\na\t"one\t1"\nb\ttwo\n', ["one 1", "two"]),
        ("m.tsv", 'audio\ttext\na\t"one\n1"\nb\ttwo\n', ["one 1", "two"]),
        ("m.tsv", '"audio"\t"text"\n"a"\t"one"\n"b"\t"two"\n', ["one", "two"]),
        ("m.csv", "audio,text\na," + "x" * 140_000 + "\nb,two\n", ["x" * 140_000, "two"]),
    ],
)
def test_every_usual_way_to_write_a_table_is_read(table_of, name, content, expected):
    table = table_of(content, name)
    assert texts_of(table) == expected
    assert [row.audio for row in rows_of(table)] == ["a", "b"]
    assert "values are separated by" in table.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", 'audio,text\na.wav,"one\nb.wav,two\nc.wav,three"\n', r"another row \('b.wav,two'\).* line 2"),
        ("m.csv", 'text,audio\n"one,a.wav\ntwo,b.wav\nthree",c.wav\n', r"another row \('one,a.wav'\)"),
        ("m.csv", 'audio,text\na.wav,one\nb.wav,"two\n', "a quote is not closed, in the row that begins in line 3"),
        ("m.csv", 'audio,text\na.wav,"one\n' + "b.wav,two of many\n" * 80_000, "line 2: is there a double quote"),
        ("m.csv", 'audio,text\na.wav,"' + "x" * 2**21 + '"\n', "field larger than field limit .* line 2"),
        ("m.csv", "audio,text\na.wav,one, two\n", "expected 2 fields in line 2, saw 3"),
        ("m.csv", "audio,text\n" + "a.wav,one\n" * 3000 + "a.wav,one,two\n", "expected 2 fields in line 3002"),
        ("m.tsv", "audio\ttext\na\tone\ttwo\n", "expected 2 fields in line 2"),
        ("m.tsv", 'audio\ttext\na\t"""one"" 1"\nb\ttwo "yes"\n', "line 2 is written with quotes.*line 3 without"),
        ("m.csv", "audio,text\n" + "a,one\n" * 9000 + "b,caf\xe9\n", "not UTF-8: .* in line 9002"),
        ("m.csv", "a.wav,hello\nb.wav,two\n", "is there no header line"),
        ("m.csv", "sound;words\na;b\n", "no column audio .*; it looks separated by semicolons"),
    ],
)
def test_a_table_that_cannot_be_read_for_certain_is_refused(table_of, name, content, message):
    with pytest.raises(ManifestError, match=message):
        table_of(content.encode("latin-1"), name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(table_of, encoding):
    with pytest.raises(ManifestError, match="not UTF-8 but UTF-16"):
        table_of("audio,text\na,one\n".encode(encoding))


@pytest.mark.parametrize(("name", "content"), [
    ("m.csv.gz", "audio,text\na,one\n"), ("m.tsv.gz", "audio\ttext\na\tone\n"),
    ("m.jsonl.gz", '{"audio": "a", "text": "one"}\n{"audio": "a", "text": "one"}\n'),
])  # fmt: skip
def test_any_text_manifest_may_be_packed_with_gzip(table_of, tmp_path, name, content):
    packed = gzip.compress(content.encode())
    assert set(texts_of(table_of(packed, name))) == {"one"}
    with pytest.raises(ManifestError, match="cannot read"):
        table_of(packed[:-9], name.replace("m.", "cut."))


def test_blocks_of_rows_are_read_from_the_middle_of_a_file(table_of):
    csv = 'audio,text\n"a","text\n0"\n' + "".join(f'"a","text\n\n{n}"\n\n' for n in range(1, 5000))
    tsv = "audio\ttext\n" + "".join(f"a\ttext {n}\n\n" for n in range(5000))
    for name, content in (("m.csv", csv), ("m.tsv", tsv)):
        table = table_of(content, name)
        tasks = list(table.tasks())
        assert len(tasks) == 3
        found = [str(row.transcript) for task in reversed(tasks) for row in table.read(*task)]
        assert sorted(found, key=lambda text: int(text.split()[1])) == [f"text {n}" for n in range(5000)]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"offset": 1, "duration": 2.5}, (1, 2.5, None)), ({"start": "1", "end": "3.5"}, (1, 2.5, None)),
        ({"offset": 0.0, "duration": 1.0}, (0, 1.0, None)), ({"offset": 3}, (3, None, None)),
        ({"end": 2}, (0, 2, None)), ({"channel": 1}, (0, None, 1)), ({"channel": "0", "start": 1}, (1, None, 0)),
        ({"duration": 2}, (0, None, None)), ({"start": [1, 2], "end": None, "channel": ""}, (0, None, None)),
    ],
)  # fmt: skip
def test_columns_name_a_part_of_a_file(table_of, values, part):
    row = rows_of(table_of(json.dumps({"audio": "a.wav", "text": "one", **values}) + "\n", "m.jsonl"))[0]
    assert (row.part.offset_s, row.part.duration_s, row.part.channel) == part
    assert row.name == "a.wav" + row.part.suffix


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"offset": -1}, "not a segment: from -1 to the end s"),
        ({"start": 3, "end": 3}, "not a segment: from 3 to 3 s"),
        ({"channel": 1.5}, "channel 1.5 is not a whole number from 0"),
        ({"channel": "left"}, "channel 'left' is not a number"),
        ({"duration": "0:06"}, "duration '0:06' is not a number of seconds"),
        ({"duration": float("inf")}, "duration inf is not a number"),
        ({"task": "sing"}, "task 'sing' is neither transcribe nor translate"),
        ({"language": ["bn"]}, "language is a list, not text"),
    ],
)
def test_values_that_make_no_sense_are_the_rows_fault(table_of, values, reason):
    row = rows_of(table_of(json.dumps({"audio": "a.wav", "text": "one", **values}) + "\n", "m.jsonl"))[0]
    assert reason in str(row.part)


def test_language_and_task_of_a_row_and_the_runs_channel(table_of):
    content = "audio,text,language,task\na,one,Bengali,translate\nb,two,,\n"
    first, second = rows_of(table_of(content, channel=1))
    assert (first.language, first.task, first.part.channel) == ("Bengali", "translate", 1)
    assert (second.language, second.task, second.part.channel) == ("", "", 1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("  two   spaces\t tab\n", "two spaces tab"), ("\u200b\ufeffhello\u00a0there\u200b", "hello there"),
        ("\u200b\ufeff", ""), ("\u2800\u3164", ""), ("\ufe0f", ""), ("চা\u09df", "চা\u09af\u09bc"), ("e\u0301", "\xe9"),
        ("র\u200d্যাব", "র\u200d্যাব"), ("می\u200cخواهم", "می\u200cخواهم"), ("a\0b\x1bc", "abc"), (".", "."),
        ("\u2028a\u2029b\x85c\x0bd", "a b c d"), ("&amp; <b>", "&amp; <b>"), ("😀", "😀"),
    ],
)  # fmt: skip
def test_a_transcript_holds_what_can_be_heard(table_of, written, meant):
    table = table_of(json.dumps({"audio": "a", "text": written}) + "\n", "m.jsonl")
    assert texts_of(table) == [meant]


def test_the_report_says_where_a_missing_file_is(load, write_recording, tmp_path):
    root = tmp_path / "lists"
    for name in ("lists/clips/under.wav", "beside.wav", "lists/x/slash.wav", "lists/Case.wav", "lists/e\u0301.wav",
                 "lists/some.wav", "lists/ending.flac", "lists/good.wav"):  # fmt: skip
        write_recording(name)
    hints = {
        "under.wav": "it is under clips/", "beside.wav": "relative names start at the manifest's own folder",
        "x\\slash.wav": "with / in place of", "case.WAV": "there is 'Case.wav'", "\xe9.wav": "there is 'e\u0301.wav'",
        " some.wav": "without the spaces", "ending": "with .flac at the end", "nowhere.wav": "nowhere.wav",
    }  # fmt: skip
    rows = [{"audio": name, "text": "one"} for name in [*hints, "good.wav"]]
    (root / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load(root / "m.jsonl", max_rejected_fraction=0.95)
    reasons = report(tmp_path)
    assert len(reasons) == len(hints)
    for (name, hint), reason in zip(hints.items(), reasons, strict=True):
        assert reason.startswith(f"file not found: {root}/{name}")
        assert hint in reason


def test_special_tokens_and_stated_durations_are_refused_with_the_cause(load, write_recording, tmp_path):
    write_recording("a.wav")
    rows = [{"text": "<|endoftext|> a"}, {"text": "b <|0.00|>"}, {"text": "<|en|>"}, {"text": "one", "duration": 600},
            {"text": "a <b> [c] <|d"}, {"text": "two", "duration": None}]  # fmt: skip
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"audio": "a.wav", **row}) + "\n" for row in rows))
    assert len(load(tmp_path / "m.jsonl", max_rejected_fraction=0.9)) == 2
    reasons = report(tmp_path)
    for token, reason in zip(["<|endoftext|>", "<|0.00|>", "<|en|>"], reasons[:3], strict=True):
        assert reason.startswith(f"transcript holds a special token of the model: {token}")
    assert "by the manifest; is it in milliseconds?" in reasons[3]


def report(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line)["reason"] for line in lines]
