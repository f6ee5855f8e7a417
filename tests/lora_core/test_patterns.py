"""Patterns of module names: Python's re is the oracle of what matches, and the clock of what would not end."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_core.patterns import LONGEST, Pattern, ends_of

classes = [r"\d", r"\w", r"\W", r"\S", "[ab1]", "[^a.]", "[a-z]", r"[\d_]", r"[^\w]"]
single = st.sampled_from([*"ab.1_", ".", r"\.", *classes])
place = st.sampled_from(["^", "$", r"\b", r"\B", r"\A", r"\Z"])
repeat = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{0,2}?", "{2,}"])


def grown(inner):
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda parts: f"({parts[0]}|{parts[1]})"),
        st.tuples(inner, repeat).map(lambda parts: f"(?:{parts[0]}){parts[1]}"),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
        single.map(lambda part: f"(?<={part})"),
        single.map(lambda part: f"(?<!{part})"),
    )


@given(st.recursive(st.one_of(single, place), grown, max_leaves=8), st.text("ab.1_\n", min_size=1, max_size=7))
def test_what_matches_is_what_re_matches(expression, path):
    assert Pattern(expression).matches(path) == (re.fullmatch(expression, path) is not None)
    at_end = re.fullmatch(rf"(.*\.)?({expression})", path) is not None
    assert Pattern.at_end(expression).matches(path) == at_end


@given(st.lists(st.text("ab.", min_size=1, max_size=3), max_size=3), st.text("ab.", max_size=7))
def test_several_names_are_ends_after_a_dot(names, path):
    expression = rf"(.*\.)?({'|'.join(map(re.escape, names))})" if names else "(?!)"
    assert Pattern(names).matches(path) == (re.fullmatch(expression, path) is not None)
    assert list(ends_of("a.b.c")) == ["a.b.c", "b.c", "c"]


BERT = "bert.encoder.layer.10.attention.self.query"
LLAMA = "base_model.model.model.layers.3.self_attn.q_proj"
USUAL = {
    r".*\.(query|value)": (BERT, LLAMA),
    r".*layer\.1[0-9]?\..*(query|value)": (BERT, LLAMA),
    r"^(?!.*lm_head).*proj$": (LLAMA, "model.lm_head.q_proj"),
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$": ("decoder.block.0.SelfAttention.q", BERT),
    r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj": ("model.layers.31.self_attn.k_proj", LLAMA),
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn).*?(?:q_proj|k_proj).*?)|"
    r"(?:\bbase_model\.model\.model\.layers\.[\d]{1,}\.(?:self_attn|attn)\.(?:(?:q_proj|v_proj)))": (LLAMA, BERT),
}
"""Expressions as they stand in adapters that PEFT wrote, each with a path that it matches and one that it does not."""


@pytest.mark.parametrize(("expression", "paths"), USUAL.items())
def test_usual_expressions(expression, paths):
    assert [Pattern(expression).matches(path) for path in paths] == [True, False]
    assert [bool(re.fullmatch(expression, path)) for path in paths] == [True, False]


def matches_or_is_refused(pattern, path):
    try:
        return pattern.matches(path)
    except ValueError:
        return "refused"


@pytest.mark.fault("a pattern that backtracks without end", "matched or refused at once", "none")
@pytest.mark.parametrize(
    "expression",
    [
        "(a*)*b", "(a+)+$b", "((a*)*)*b", "(a|a)*b", "(a|aa)+b", "(.*a){30}b", "(a?){40}a{40}b", ".*.*.*.*.*.*.*.*b",
        "((((((a*)*)*)*)*)*)*b", "(?=(a+)+b)a*b", "(?:(?:a*)*(?:a*)*)*b", "(a{0,4000000000}){0,4000000000}b",
        "(?:(?=a)|a){3000000000}b", f"{'(a*' * 200}{')*' * 200}b",
    ],
)  # fmt: skip
def test_hostile_expressions_end(expression):
    started = time.perf_counter()
    for path in ("a" * 60, ".".join("a" * 30), "bert.encoder.layer.0.attention.self.query"):
        for pattern in (Pattern(expression), Pattern.at_end(expression)):
            assert matches_or_is_refused(pattern, path) in (False, "refused")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"(a)\1", "groupref.*refers back"),
        (r"(?P<n>a)(?P=n)", "groupref"),
        (r"(a)?(?(1)b|c)", "groupref exists"),
        (r"(?i)query", "uses flags"),
        (r"(?i:query)", "uses flags"),
        ("a" * (LONGEST + 1), "4,001 characters"),
        ("(" * 1900 + ")" * 1900, "not a regular expression"),
        ("a{99999999999}", "not a regular expression"),
        ("(", "not a regular expression"),
    ],
)
def test_what_is_refused(expression, message):
    with pytest.raises(ValueError, match=message) as error:
        Pattern(expression)
    assert len(str(error.value)) < 300
