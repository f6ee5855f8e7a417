import hashlib

from lora_core.files import BLOCK, sha256_of_file


def test_the_digest_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * (BLOCK // 100)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
