"""A split as the readers give it, or the message with which they refuse it."""

import pytest

from data.index import load_split
from data.spec import load_data_spec
from utils.errors import DATA, UserError


def load(yaml, **options):
    """Index and report of the training split."""
    return load_split(load_data_spec(yaml), "train", **options)


def error_of(yaml, **options):
    """The message of the ``UserError`` that reading ends in."""
    with pytest.raises(UserError) as error:
        load(yaml, **options)
    assert error.value.code == DATA
    return str(error.value)
