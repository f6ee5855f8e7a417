import json

import pytest

from trainers.data.texts.encode import TextProcessing


@pytest.mark.parametrize("processing", [TextProcessing(), TextProcessing(12, "head_tail"), TextProcessing(512)])
def test_what_is_saved_is_read(processing, tmp_path):
    processing.save(tmp_path)
    assert TextProcessing.read(tmp_path) == processing
    assert json.loads((tmp_path / "text_processing.json").read_text()).keys() == {"max_length", "long_text", "pairs"}


def test_a_folder_without_the_file_has_the_defaults(tmp_path):
    assert TextProcessing.read(tmp_path) == TextProcessing(None, "head")
    assert TextProcessing.from_json("{}", "") == TextProcessing()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds list instead of a JSON object"),
        ('{"max_length": 0}', "max_length is 0"),
        ('{"max_length": true}', "max_length is True"),
        ('{"long_text": "end"}', "long_text is 'end', expected one of head, tail, head_tail, windows"),
    ],
)
def test_damaged_files_are_named(text, message, tmp_path):
    (tmp_path / "text_processing.json").write_text(text)
    with pytest.raises(ValueError, match=rf"text_processing\.json.*{message}"):
        TextProcessing.read(tmp_path)
