"""Class names as names of folders. They come from weights and data sets of strangers: any text may be one."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from itertools import count

MAX_BYTES = 100  # most disks allow 255, with the number that may follow
DEVICES = r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\.|$)"  # Windows', with any ending


def name_folders(names: Iterable[str]) -> dict[str, str]:
    """A folder for each class name, no two of them alike on any disk: of equal ones the later get a number.

    Names that can stand as they are come first.
    """
    folders: dict[str, str] = {}
    taken: set[str] = set()
    numbers = defaultdict(partial(count, 2))
    for name in sorted(dict.fromkeys(names), key=lambda name: folder_name(name) != name):
        wanted = folder = folder_name(name)
        while (seen := unicodedata.normalize("NFKC", folder).casefold()) in taken:
            folder = f"{wanted}_{next(numbers[wanted])}"
        taken.add(seen)
        folders[name] = folder
    return folders


def folder_name(name: str) -> str:
    """Letters, digits, space, '-', '_', '.': never hidden, above, a device of Windows, or long."""
    letters = unicodedata.normalize("NFC", name[:MAX_BYTES])
    safe = "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in letters).strip(" .")
    short = safe.encode()[:MAX_BYTES].decode(errors="ignore").rstrip(" .")
    return f"_{short}" if re.match(DEVICES, short, re.IGNORECASE) else short or "class"
