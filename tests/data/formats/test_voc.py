"""VOC XML in any declared encoding; a DTD's entities are never read; what cannot be read is said to be so."""

import os
import time

import pytest
from PIL import Image

from data.formats.voc import parse_xml
from data.index import load_split, read_split
from data.spec import load_data_spec
from utils.errors import DATA, UserError

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"


def xml(name, head=""):
    return f"{head}<annotation>\n<object><name>{name}</name>{BOX}</object></annotation>"


def declared(encoding, name):
    return xml(name, f'<?xml version="1.0" encoding="{encoding}"?>\n')


def names_of(data):
    return [item.fields["name"][0] for item in parse_xml(data).objects]


ENCODINGS = [  # declared, Python's, a word
    ("gb2312", "gb2312", "红细胞"),
    ("GB2312", "gb18030", "喆镕"),  # beyond GB2312: Windows writes them all the same
    ("GBK", "gbk", "白细胞"),
    ("gb18030", "gb18030", "㐂血小板"),
    ("Big5", "big5", "紅血球"),
    ("Shift_JIS", "cp932", "①髙橋"),
    ("EUC-JP", "euc_jp", "猫"),
    ("EUC-KR", "cp949", "똠고양이"),
    ("windows-1251", "cp1251", "кошка"),
    ("KOI8-R", "koi8-r", "кошка"),
    ("ISO-8859-1", "latin-1", "Hündin"),
    ("latin1", "cp1252", "“Hund”"),
    ("windows-1252", "cp1252", "Straßenbahn €"),
    ("UTF-16", "utf-16", "猫 cat"),
    ("utf-8", "utf-16-be", "猫 cat"),  # with its mark, below
    ("UTF-8", "utf-8-sig", "猫"),
    ("utf-16", "utf-8", "Straße"),  # as .NET declares what it writes as UTF-8
    ("us-ascii", "ascii", "cat"),
]


@pytest.mark.parametrize(("declaration", "codec", "word"), ENCODINGS)
def test_declared_encodings_are_read(declaration, codec, word):
    data = declared(declaration, word).encode(codec)
    if codec == "utf-16-be":
        data = b"\xfe\xff" + data
    assert names_of(data) == [word]
    assert names_of(data.replace(b"\n", b"\r\n") if b"\0" not in data else data) == [word]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_without_a_declaration_the_mark_tells(codec):
    assert names_of(xml("猫").encode(codec)) == ["猫"]


WRONG = [
    (
        declared("utf-8", "红细胞").encode("gbk"),
        "it declares the encoding 'utf-8', and its bytes are of another",
    ),
    (xml("红细胞").encode("gbk"), "it declares no encoding but utf-8's, and its bytes are of another"),
    (declared("gbk", "x").encode() + b"<!-- \xff\xff -->", "'gbk', and its bytes are of another"),
    (declared("us-ascii", "猫").encode(), "'us-ascii', and its bytes are of another"),
    (declared("klingon", "cat").encode(), "its declared encoding 'klingon' is unknown"),
    (declared("punycode", "cat").encode(), "'punycode' is unknown"),
    (declared("unicode_escape", "cat").encode(), "'unicode_escape' is unknown"),
    (declared("zip", "cat").encode(), "'zip' is unknown"),
    (b"\xff\xfe\0", "bytes are of another"),
]


@pytest.mark.parametrize(("data", "text"), WRONG)
def test_a_wrong_declaration_is_named(data, text):
    with pytest.raises(ValueError) as error:
        parse_xml(data)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE annotation>",
        '<!DOCTYPE annotation SYSTEM "voc.dtd">',
        '<!DOCTYPE annotation PUBLIC "-//x//y" "http://127.0.0.1:9/voc.dtd">',
        '<!DOCTYPE annotation SYSTEM "x.dtd" [%unknown;]>',
        "<!DOCTYPE annotation [<!ELEMENT annotation ANY><!ATTLIST object kind CDATA 'x'>]>",
    ],
)
def test_a_document_type_is_read_over(doctype):
    assert names_of(xml("a &amp; b", f'<?xml version="1.0"?>\n{doctype}\n').encode()) == ["a & b"]


LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))
ENTITIES = {
    "laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>' + xml("&l12;"),
    "one": '<!DOCTYPE a [<!ENTITY e "cat">]>' + xml("&e;"),
    "unused": '<!DOCTYPE a [<!ENTITY e "cat">]>' + xml("cat"),
    "file": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + xml("&e;"),
    "network": '<!DOCTYPE a [<!ENTITY e SYSTEM "http://127.0.0.1:9/x">]>' + xml("&e;"),
    "parameter": '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;]>' + xml("cat"),
    "undeclared": '<!DOCTYPE a SYSTEM "x.dtd">' + xml("c&e;t"),
    "in an attribute": '<!DOCTYPE a [<!ENTITY e "x">]>' + xml("cat").replace("<object>", '<object k="&e;">'),
}


@pytest.mark.parametrize("kind", ENTITIES)
def test_entities_are_never_read(kind, monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr("socket.socket", lambda *_: pytest.fail("the network was used"))
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"the entity .* is not read"):
        parse_xml(ENTITIES[kind].encode())
    assert time.process_time() - begun < 1


def write(root, files, extra=""):
    for kind in ("images", "xml"):
        (root / kind).mkdir(parents=True)
    for stem, data in files.items():
        Image.new("RGB", (60, 50)).save(root / "images" / f"{stem}.png")
        if data is not None:
            (root / "xml" / f"{stem}.xml").write_bytes(data)
    (root / "data.yaml").write_text(f"train: images\nannotations: xml\n{extra}\n")
    return root / "data.yaml"


def test_files_that_cannot_be_read_are_not_files_without_names(tmp_path):
    bad = declared("utf-8", "红细胞").encode("gbk")
    yaml = write(tmp_path / "all", {"a": bad, "b": bad})
    with pytest.raises(UserError, match="2 of 2 XML files cannot be read") as error:
        load_data_spec(yaml)
    assert error.value.code == DATA and f"{tmp_path}/all/xml/a.xml:3: cannot read this as VOC" in str(
        error.value
    )
    some = write(tmp_path / "some", {"a": bad, "b": xml("cat").encode()})
    assert load_data_spec(some).names == ("cat",)
    with pytest.raises(UserError, match="1 problem"):
        load_split(load_data_spec(some), "train")
    with pytest.raises(UserError, match="no XML file names an object"):
        load_data_spec(write(tmp_path / "empty", {"a": b"<annotation/>"}))


def test_missing_and_unreadable_files_are_two_kinds(tmp_path):
    yaml = write(tmp_path, dict.fromkeys("abcde", xml("cat").encode()) | {"f": None}, "names: [cat]")
    (tmp_path / "xml" / "a.xml").unlink()
    (tmp_path / "xml" / "b.xml").unlink()
    (tmp_path / "xml" / "b.xml").mkdir()
    (tmp_path / "xml" / "c.xml").unlink()
    (tmp_path / "xml" / "c.xml").symlink_to("/nowhere/c.xml")
    (tmp_path / "images" / "d.png").unlink()
    os.symlink("/nowhere/d.png", tmp_path / "images" / "d.png")
    found = read_split(load_data_spec(yaml), "train")
    kinds = [(problem.path.rpartition("/")[2], problem.kind) for problem in found.problems]
    assert kinds == [("d.png", "picture"), ("b.xml", "label file"), ("c.xml", "label file")]
    assert "a link to /nowhere/c.xml, where nothing is" in found.problems[2].text
    assert found.report.num_missing == 2  # a and f: background


def test_a_listed_picture_that_is_not_there_is_no_unreadable_one(tmp_path):
    yaml = write(tmp_path, {"a": xml("cat").encode()}, "names: [cat]")
    (tmp_path / "list.txt").write_text("images/a.png\nimages/gone.png\n")
    yaml.write_text("train: list.txt\nannotations: xml\nformat: voc\nnames: [cat]\n")
    (problem,) = read_split(load_data_spec(yaml), "train").problems
    assert (problem.kind, problem.text) == ("missing picture", "no such file")


def test_an_object_with_two_boxes_is_asked_about(tmp_path):
    text = f"<annotation><object><name>cat</name>{BOX}{BOX}</object></annotation>"
    found = read_split(load_data_spec(write(tmp_path, {"a": text.encode()}, "names: [cat]")), "train")
    assert "an object has two <bndbox>" in found.problems[0].text
