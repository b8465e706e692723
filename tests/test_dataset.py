import json
import re
from pathlib import Path

from yi_tune.data.identity import Dataset, Identity, dataset_of, render, write_datasets


def test_file_name_tells_contents_apart(tmp_path: Path) -> None:
    datasets = [dataset_of("identity", render(Identity("小易", author))) for author in ("李雷", "李蕾", "李雷")]
    names = [dataset.file_name for dataset in datasets]
    assert names[0] == names[2] != names[1]
    assert all(re.fullmatch(r"identity-[0-9a-f]{12}\.jsonl", name) for name in names)
    # The same content in a file has the same name.
    assert isinstance(datasets[0].content, str)
    (tmp_path / "rows").write_text(datasets[0].content, encoding="utf-8")
    assert Dataset("identity", 398, tmp_path / "rows").file_name == names[0]


def test_dataset_info_is_ascii_and_points_at_the_files(tmp_path: Path) -> None:
    identity = dataset_of("identity", [[{"role": "user", "content": "你好 🚀"}]])
    (tmp_path / "rows").write_text("{}\n")
    own = Dataset("own", 1, tmp_path / "rows")
    folder = tmp_path / "not" / "there yet"
    write_datasets([identity, own], folder)
    info = json.loads((folder / "dataset_info.json").read_bytes().decode("ascii"))
    assert list(info) == ["identity", "own"]
    text = (folder / info["identity"]["file_name"]).read_text(encoding="utf-8")
    assert json.loads(text) == {"messages": [{"role": "user", "content": "你好 🚀"}]}
    assert "你好 🚀" in text
    assert (folder / info["own"]["file_name"]).read_text() == "{}\n"
    # Again, as a resumed run does.
    write_datasets([identity, own], folder)
    assert {file.name for file in folder.iterdir()} == {"dataset_info.json", identity.file_name, own.file_name}
