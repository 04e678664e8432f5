from pathlib import Path

import pytest
from pyarrow import fs

from gptj_batch.errors import ConfigError, InputError
from gptj_batch.records.locate import find_files, locate, would_find


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(paths: object, folder: Path) -> list[str]:
    return [Path(file.path).relative_to(folder).as_posix() for file in find_files(paths)]


def test_a_file_is_found_by_its_name_with_size_and_time(tmp_path):
    touch(tmp_path, "a.parquet")
    (file,) = find_files(str(tmp_path / "a.parquet"))
    assert file.path == str(tmp_path / "a.parquet") and file.size_bytes == 1 and file.named
    assert file.mtime_ns == (tmp_path / "a.parquet").stat().st_mtime_ns


def test_a_folder_is_read_with_its_subfolders_in_order_of_paths(tmp_path):
    touch(tmp_path, "b.parquet", "a/z.parquet", "a/b/c.parquet")
    assert found(str(tmp_path), tmp_path) == ["a/b/c.parquet", "a/z.parquet", "b.parquet"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(tmp_path, "a.parquet", "_SUCCESS", ".b.parquet.crc", "_gptj/c.parquet", ".d/e.parquet")
    assert found(str(tmp_path), tmp_path) == ["a.parquet"]
    assert found(f"{tmp_path}/*", tmp_path) == ["a.parquet"]


def test_a_hidden_folder_can_be_named(tmp_path):
    touch(tmp_path, "_data/a.parquet")
    assert found(f"{tmp_path}/_data", tmp_path) == ["_data/a.parquet"]
    assert found(f"{tmp_path}/_*/*.parquet", tmp_path) == ["_data/a.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "b1.parquet"]),
        ("b?.parquet", ["b1.parquet"]),
        ("[ab]*.parquet", ["a.parquet", "b1.parquet"]),
        ("*/c.parquet", ["x/c.parquet"]),
        ("**/c.parquet", ["x/c.parquet", "x/y/c.parquet"]),
        ("x/**", ["x/c.parquet", "x/y/c.parquet"]),
        ("x*", ["x/c.parquet", "x/y/c.parquet"]),
    ],
)
def test_globs_match_as_a_shell_would(tmp_path, pattern, expected):
    touch(tmp_path, "a.parquet", "b1.parquet", "x/c.parquet", "x/y/c.parquet")
    assert found(f"{tmp_path}/{pattern}", tmp_path) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "**",
        "**/*.parquet",
        "*/*.parquet",
        "*/**",
        "x/**/c.parquet",
        "_*/*",
        "*/_d/*",
        "**/y",
        "[!x]*",
        "x/?/*",
    ],
)
def test_what_a_glob_would_find_is_what_it_finds(tmp_path, pattern):
    names = ["a.parquet", "_d/a.parquet", "x/c.parquet", "x/_d/c.parquet", "x/y/c.parquet", "x/y/z/.c.parquet"]
    touch(tmp_path, *names)
    would = [name for name in names if would_find(name.split("/"), pattern.split("/") if pattern else [])]
    assert would and found(f"{tmp_path}/{pattern}", tmp_path) == sorted(would)


def test_a_file_whose_name_looks_like_a_glob_is_found_by_its_name(tmp_path):
    touch(tmp_path, "a[1].parquet", "a1.parquet")
    assert found(f"{tmp_path}/a[1].parquet", tmp_path) == ["a[1].parquet"]


def test_a_list_may_overlap_and_each_file_comes_once(tmp_path):
    touch(tmp_path, "a.parquet", "b.parquet")
    assert found([f"{tmp_path}/b.parquet", str(tmp_path)], tmp_path) == ["a.parquet", "b.parquet"]


def test_a_relative_path_is_made_absolute_since_workers_run_elsewhere(tmp_path, monkeypatch):
    touch(tmp_path, "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert found("a.parquet", tmp_path) == ["a.parquet"]


def test_a_file_uri_is_a_local_path(tmp_path):
    touch(tmp_path, "a b#c.parquet")
    assert found(f"{tmp_path.as_uri()}/a%20b%23c.parquet", tmp_path) == ["a b#c.parquet"]


@pytest.mark.parametrize("pattern", ["nothing.parquet", "*.parquet", "no/such/**/x"])
def test_a_path_that_leads_to_nothing_is_named(tmp_path, pattern):
    with pytest.raises(InputError, match=r"input\.path: nothing matches") as caught:
        find_files(f"{tmp_path}/{pattern}")
    assert pattern in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "hdfs"])
def test_schemes_that_are_not_read_are_refused(scheme):
    with pytest.raises(
        ConfigError, match=rf"input\.path: {scheme}:// is not read; local paths, s3://, gs:// and hf:// are"
    ):
        find_files(f"{scheme}://example.org/data/*.parquet")


def test_a_bucket_keeps_its_options_and_its_key_may_hold_anything():
    place = locate("s3://bucket/some folder/#1/*.parquet?region=eu-central-1")
    assert isinstance(place.filesystem, fs.S3FileSystem) and place.filesystem.region == "eu-central-1"
    assert place.path == "bucket/some folder/#1/*.parquet"
    assert place.public("bucket/some folder/a.parquet") == "s3://bucket/some folder/a.parquet?region=eu-central-1"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", [("year", "2024"), ("kind", "a b")]),
        ("/*/*/*.parquet", [("year", "2024"), ("kind", "a b")]),
        ("/year=2024", [("kind", "a b")]),
        ("/year=2024/kind=a%20b", []),
        ("/year=2024/kind=a%20b/a.parquet", []),
    ],
)
def test_folders_below_the_path_say_of_which_partition_a_file_is(tmp_path, path, expected):
    touch(tmp_path, "year=2024/kind=a%20b/a.parquet")
    (file,) = find_files(f"{tmp_path}{path}")
    assert file.partition == tuple(expected)


def test_the_default_partition_has_no_value(tmp_path):
    touch(tmp_path, "year=__HIVE_DEFAULT_PARTITION__/a.parquet")
    assert find_files(str(tmp_path))[0].partition == (("year", None),)


def test_one_partition_can_be_named_and_a_file_may_have_an_equals_sign(tmp_path):
    touch(tmp_path, "year=2024/month=1/a=b.parquet")
    assert found(f"{tmp_path}/year=2024/month=1", tmp_path) == ["year=2024/month=1/a=b.parquet"]


def test_an_output_can_be_the_next_input_once_it_is_complete(tmp_path):
    touch(tmp_path, "out/part-00000.parquet", "out/_gptj_batch/plan.json")
    with pytest.raises(InputError, match="has not finished"):
        find_files(str(tmp_path))
    touch(tmp_path, "out/_SUCCESS")
    assert found(str(tmp_path), tmp_path) == ["out/part-00000.parquet"]


def test_links_are_followed_by_their_own_names(tmp_path):
    touch(tmp_path, "blobs/0123")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").symlink_to(tmp_path / "blobs" / "0123")
    assert found(str(tmp_path / "data"), tmp_path) == ["data/a.parquet"]


def test_the_hub_is_a_file_system_and_one_message_where_it_cannot_be_reached():
    place = locate("hf://datasets/owner/name@main/data/*.parquet")
    assert (place.path, place.public("datasets/x")) == ("datasets/owner/name@main/data/*.parquet", "hf://datasets/x")
    with pytest.raises(InputError, match=r'input\.path: "hf://datasets/owner/name" cannot be listed: .*'):
        find_files("hf://datasets/owner/name")


def test_runs_that_go_on_out_of_sight_make_no_output_unfinished(tmp_path):
    for folder in (tmp_path, tmp_path / "run=1", tmp_path / "_gptj_batch" / "runs" / "2"):
        (folder / "_gptj_batch").mkdir(parents=True, exist_ok=True)
        (folder / "part-00000.parquet").write_bytes(b"x")
    for folder in (tmp_path, tmp_path / "run=1"):
        (folder / "_SUCCESS").touch()
    assert [file.path for file in find_files(str(tmp_path))] == [
        str(tmp_path / "part-00000.parquet"),
        str(tmp_path / "run=1" / "part-00000.parquet"),
    ]
    (tmp_path / "run=1" / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="run=1 is the output of a gptj-batch run that has not finished"):
        find_files(str(tmp_path))


def test_credentials_in_a_path_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="has credentials in it") as refused:
        locate("s3://key:hidden@bucket/rows.parquet")
    assert "hidden" not in str(refused.value)
