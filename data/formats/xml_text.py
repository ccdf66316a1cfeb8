"""The text of an XML file by its declared encoding, as UTF-8: expat itself reads few encodings.

Its parser knows no encoding of several bytes a character but UTF-8 and UTF-16, so it refuses what Chinese,
Japanese and Korean tools write.
"""

import codecs
import re

DECLARATION = re.compile(rb"""<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z][\w.:-]{0,39})["']""")
BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# Windows writes the wider set of characters under the narrower name.
WIDER = {
    "gb2312": ["gb18030"],
    "gbk": ["gb18030"],
    "big5": ["big5", "cp950", "big5hkscs"],
    "shift_jis": ["shift_jis", "cp932"],
    "euc_kr": ["euc_kr", "cp949"],
    "iso8859-1": ["cp1252", "iso8859-1"],
    "ascii": ["ascii"],
}
# Python has more, of which some decode in quadratic time (punycode) or run backslashes as commands.
KNOWN = re.compile(
    r"utf-8|ascii|gb18030|big5hkscs|hz|cp\d{3,5}|iso8859-\d{1,2}|koi8-[rut]|tis-620|mac-\w+|kz1048|ptcp154"
    r"|johab|euc_j\w+|shift_jis\w*|iso2022_\w+|" + "|".join(WIDER)
)


def read_encoded(data: bytes) -> bytes:
    """The file as UTF-8 without a byte order mark; its declaration no longer tells its encoding.

    Raises ``ValueError`` with the name of the encoding where it is unknown, or not the bytes' own.
    """
    for mark, name in BOMS.items():  # it is a fact, the declaration a claim
        if data.startswith(mark):
            return _decode(data[len(mark) :], name, [name], declared=False)
    if data[:4] in (b"<\0?\0", b"\0<\0?"):
        name = "utf-16-le" if data[1] == 0 else "utf-16-be"
        return _decode(data, name, [name], declared=False)
    found = DECLARATION.match(data.lstrip())
    if not found:
        return _decode(data, "utf-8", ["utf-8"], declared=False)
    declared = found[1].decode("ascii")
    if declared.lower().startswith(("utf-16", "utf16", "ucs-2")):
        # .NET declares it in files that are not: what reads as ASCII up to here has one byte a character
        return _decode(data, declared, ["utf-8"], declared=True)
    try:
        name = codecs.lookup(declared).name
    except LookupError:
        name = ""
    if not KNOWN.fullmatch(name):
        raise ValueError(f"its declared encoding {declared!r} is unknown; save the file as UTF-8")
    return _decode(data, declared, WIDER.get(name, [name]), declared=True)


def _decode(data: bytes, shown: str, names: list[str], *, declared: bool) -> bytes:
    for name in names:
        try:
            return data.decode(name).encode("utf-8")
        except UnicodeError as error:
            fault = error
    line = data.count(b"\n", 0, getattr(fault, "start", 0)) + 1
    says = f"it declares the encoding {shown!r}" if declared else f"it declares no encoding but {shown}'s"
    remedy = 'write the true one in line 1: <?xml version="1.0" encoding="..."?>'
    problem = ValueError(f"{says}, and its bytes are of another; {remedy}")
    problem.lineno = line
    raise problem
