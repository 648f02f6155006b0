import pytest

from distill.decode.token_text import tokens_to_text
from distill.errors import UserError


@pytest.mark.parametrize(
    ("token_type", "tokens", "text"),
    [
        ("char", ["<space>", "a", "b", "<space>", "<space>", "c", "<sos/eos>"], "ab c"),
        ("bpe", ["▁he", "l", "lo", "▁", "world"], "hello world"),
        ("word", ["one", "<unk>", "two"], "one <unk> two"),
        ("phn", ["W", "AH1", "N"], "W AH1 N"),
        ("char", [], ""),
    ],
)
def test_tokens_to_text(token_type, tokens, text):
    assert tokens_to_text(tokens, token_type) == text


def test_an_unknown_type_is_refused():
    with pytest.raises(UserError, match="token_type"):
        tokens_to_text([], "morse")
