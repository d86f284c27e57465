"""Scores of datasets larger than a file list: sources, parts, and reruns."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from helpers import NETWORK, call
from PIL import Image

from openood_adascale import MSP, AdaSCALE
from openood_adascale.errors import ImageError, NotFittedError, ResultError, SettingError
from openood_adascale.evaluation import bulk
from openood_adascale.evaluation.bulk import Summary, score_dataset
from openood_adascale.models.loading import load_network

pa = pytest.importorskip("pyarrow", reason="needs the extra ray: pip install -e '.[ray]'")
pq = pytest.importorskip("pyarrow.parquet")

NAN_FOR_GREEN = """
def nan_for_green(image):
    tensor = transform(image)
    return tensor * float("nan") if tensor[1].mean() > 0.9 else tensor
"""


def encoded(seed, color=None, form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 200, (40, 48, 3), dtype=np.uint8)
    if color is not None:
        pixels[:] = color
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_parquet(path, images, rows=10, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=rows)


def write_tar(path, members):
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bulk, "PART_IMAGES", (8, 8192))
    (tmp_path / "net.py").write_text(NETWORK + NAN_FOR_GREEN)
    loaded = load_network("net.py:network")
    detector = AdaSCALE(loaded.network).fit([torch.rand(16, 3, 32, 32)], progress=False)
    detector.save("d.safetensors", {"classes": ["cat", "dog", "owl"]})
    return tmp_path


@pytest.fixture
def run(folder):
    def score(sources, output="out", **settings):
        settings = {"network": "net.py:network", "batch_size": 4, "progress": False, **settings}
        return score_dataset("d.safetensors", sources, output, **settings)

    return score


def rows(output="out"):
    names = sorted(name for name in os.listdir(output) if name.startswith("part-"))
    return [row for name in names for row in pq.read_table(os.path.join(output, name)).to_pylist()]


def expected(contents):
    loaded = load_network("net.py:network")
    detector = AdaSCALE.load("d.safetensors", loaded.network)
    images = [loaded.transform(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    predictions, scores = detector.predict(torch.stack(images))
    return predictions.tolist(), scores.numpy(), detector.threshold(0.95)


# Sources.


def test_parquet_rows_are_scored_in_order(folder, run):
    images = [encoded(seed) for seed in range(47)]
    write_parquet(folder / "data/a.parquet", images[:25])
    write_parquet(folder / "data/deep/b.parquet", images[25:], rows=100)
    write_parquet(folder / "data/_hidden.parquet", images[:1])
    summary = run("data")
    found = rows()
    predictions, scores, threshold = expected(images)
    assert [row["path"] for row in found] == [
        *(f"data/a.parquet#{row}" for row in range(25)),
        *(f"data/deep/b.parquet#{row}" for row in range(22)),
    ]
    np.testing.assert_allclose([row["score"] for row in found], scores, rtol=1e-5)
    assert [row["prediction"] for row in found] == predictions
    assert [row["class"] for row in found] == [["cat", "dog", "owl"][number] for number in predictions]
    assert [row["ood"] for row in found] == [row["score"] < threshold for row in found]
    assert {row["error"] for row in found} == {None}
    assert summary == Summary(47, sum(row["ood"] for row in found), 0, summary.parts, summary.parts)
    assert len(os.listdir("out")) == 1 + summary.parts > 5
    assert pq.read_table("out").num_rows == 47  # readers pass over the manifest


def test_command_scores_parquet_files(folder):
    images = [encoded(seed) for seed in range(9)]
    write_parquet(folder / "a.parquet", images)
    command = ["score", "d.safetensors", "a.parquet", "--network", "net.py:network", "--quiet"]
    done = call(*command, "-o", "out")
    np.testing.assert_allclose([row["score"] for row in rows()], expected(images)[1], rtol=1e-5)
    assert "of 9 images are OOD; 0 could not be read; out: " in done.stderr
    for wrong, words in (
        (["--weights", "no.pth", "-o", "o"], "no.pth"),
        ([], "--output"),
        (["-o", "o", "--format", "csv"], "--format"),
    ):
        done = call(*command, *wrong, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_hugging_face_images_and_names_are_read(folder, run):
    images = [{"bytes": encoded(seed), "path": None} for seed in range(5)]
    write_parquet(folder / "a.parquet", images, id=[7, 8, 9, 10, 11])
    run("a.parquet", path_column="id")
    assert [row["path"] for row in rows()] == ["7", "8", "9", "10", "11"]
    np.testing.assert_allclose(
        [row["score"] for row in rows()], expected([one["bytes"] for one in images])[1], rtol=1e-5
    )


def test_webdataset_shards_are_parts(folder, run):
    images = [encoded(seed) for seed in range(9)]
    for number, name in enumerate(("a.tar", "b.tar.gz", "c.tgz")):
        members = {
            f"x/{row}.{end}": images[3 * number + row] for row, end in enumerate(("png", "PNG", "png"))
        }
        write_tar(folder / name, {"x/0.cls": b"1", "x/._0.png": b"", **members})
    assert run(["a.tar", "b.tar.gz", "c.tgz"]).parts == 3
    assert [row["path"] for row in rows()][2:5] == ["a.tar/x/2.png", "b.tar.gz/x/0.png", "b.tar.gz/x/1.PNG"]
    np.testing.assert_allclose([row["score"] for row in rows()], expected(images)[1], rtol=1e-5)


def test_image_files_of_a_url_are_read_once(folder, run):
    images = [encoded(seed) for seed in range(3)]
    (folder / "images").mkdir()
    for number, content in enumerate(images):
        (folder / f"images/{number}.png").write_bytes(content)
    (folder / "images/notes.txt").write_text("no image")
    url = (folder / "images").as_uri()
    assert run([url, f"{url}/0.png"]).images == 3
    assert rows()[0]["path"] == f"{url}/0.png"
    np.testing.assert_allclose([row["score"] for row in rows()], expected(images)[1], rtol=1e-5)


def test_s3_is_read(folder, run, monkeypatch):
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        images = [encoded(seed) for seed in range(30)]
        write_parquet(folder / "a.parquet", images[:20])
        client.upload_file("a.parquet", "bucket", "set/a.parquet")
        for number in range(20, 30):
            client.put_object(Bucket="bucket", Key=f"set/b/{number}.png", Body=images[number])
        options = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        assert run(f"s3://bucket/set?{options}").images == 30
        assert rows()[0]["path"] == "s3://bucket/set/a.parquet#0"
        assert rows()[-1]["path"] == "s3://bucket/set/b/29.png"
        np.testing.assert_allclose([row["score"] for row in rows()], expected(images)[1], rtol=1e-5)
    finally:
        server.stop()


def test_large_row_groups_are_divided_without_loss(folder, run):
    write_parquet(folder / "a.parquet", [encoded(seed) for seed in range(200)], rows=1000)
    assert run("a.parquet").parts == 16
    assert [row["path"] for row in rows()] == [f"a.parquet#{row}" for row in range(200)]


# Images that cannot be used.


def test_unreadable_images_keep_a_row(folder, run):
    good = encoded(1)
    write_parquet(
        folder / "a.parquet", [good, b"nothing", None, b"", good[:300], encoded(2, (0, 255, 0)), good]
    )
    summary = run("a.parquet", transform="net.py:nan_for_green")
    errors = [row["error"] for row in rows()]
    assert errors[0] is errors[6] is None
    assert errors[1:4] == ["is no image that Pillow can read", "is empty", "is empty"]
    assert "is broken" in errors[4]
    assert "NaN or infinity" in errors[5]
    assert rows()[5] == {**dict.fromkeys(rows()[5]), "path": "a.parquet#5", "error": errors[5]}
    assert rows()[0]["score"] == rows()[6]["score"] == pytest.approx(expected([good])[1][0], rel=1e-5)
    assert (summary.images, summary.errors) == (7, 5)


@pytest.mark.parametrize("name", ["a.parquet", "a.tar"])
def test_damaged_file_is_an_error_that_names_it(folder, run, name):
    (folder / name).write_bytes(b"PAR1" + b"nothing" * 300)
    with pytest.raises(ImageError, match=name):
        run(name)


# Settings.


def test_settings_that_cannot_be_used_are_named(folder, run):
    write_parquet(folder / "a.parquet", [encoded(1)], id=[1])
    for message, sources, settings in (
        ("image_column: 'x' is not allowed; expected a column of a.parquet: image, id", "a.parquet", {"image_column": "x"}),
        ("path_column: 'x'", "a.parquet", {"path_column": "x"}),
        ("image_column: 'id' is not allowed; expected bytes", "a.parquet", {"image_column": "id"}),
        ("sources: 'none'", "none", {}),
        (r"sources: \[\]", [], {}),
        ("sources: 'net.py'", "net.py", {}),
        ("sources: 'odd://x'", "odd://x", {}),
        ("batch_size: 0", "a.parquet", {"batch_size": 0}),
        ("tpr: 0", "a.parquet", {"tpr": 0}),
        ("--network: None", "a.parquet", {"network": None}),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            run(sources, **settings)
    assert not os.path.exists("out")
    MSP(load_network("net.py:network").network).save("msp.safetensors")
    with pytest.raises(NotFittedError, match="fit_threshold"):
        score_dataset("msp.safetensors", "a.parquet", "out", network="net.py:network")


def test_network_may_be_a_module(folder, run):
    write_parquet(folder / "a.parquet", [encoded(1)])
    loaded = load_network("net.py:network")
    run("a.parquet", network=loaded.network, transform=loaded.transform)
    run("a.parquet", "named")
    assert rows() == rows("named")
    with pytest.raises(SettingError, match="transform"):
        run("a.parquet", "other", network=loaded.network)


# Reruns.


def test_rerun_scores_missing_parts_only(folder, run):
    write_parquet(folder / "a.parquet", [encoded(seed) for seed in range(40)])
    loaded, seen = load_network("net.py:network"), []
    settings = {"network": loaded.network}

    def transform(image):
        seen.append(image)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return loaded.transform(image)

    whole = run("a.parquet", "whole", transform=loaded.transform, **settings)
    with pytest.raises(KeyboardInterrupt):
        run("a.parquet", transform=transform, **settings)
    assert len(rows()) == 16
    before = (folder / "out/part-00001.parquet").stat().st_mtime_ns
    summary = run("a.parquet", transform=transform, batch_size=7, **settings)
    assert summary == Summary(whole.images, whole.ood, 0, 5, 3)
    assert (folder / "out/part-00001.parquet").stat().st_mtime_ns == before
    assert [row["path"] for row in rows()] == [row["path"] for row in rows("whole")]
    assert run("a.parquet", transform=transform, **settings) == Summary(whole.images, whole.ood, 0, 5, 0)
    assert {name.rpartition(".")[2] for name in os.listdir("out")} == {"json", "parquet"}


def test_output_of_other_settings_is_refused(folder, run):
    write_parquet(folder / "a.parquet", [encoded(1)])
    run("a.parquet")
    part = folder / "out/part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:9])
    with pytest.raises(ResultError, match=r"part-00000\.parquet"):
        run("a.parquet")
    part.write_bytes(whole)
    with pytest.raises(SettingError, match=r"scores for tpr 0\.95 rather than 0\.9"):
        run("a.parquet", tpr=0.9)
    with pytest.raises(SettingError, match="scores for transform"):
        run("a.parquet", transform="net.py:nan_for_green")
    write_parquet(folder / "a.parquet", [encoded(1), encoded(2)])
    with pytest.raises(SettingError, match="scores for sources"):
        run("a.parquet")
    with pytest.raises(SettingError, match="a new or empty directory"):
        run("a.parquet", ".")
    (folder / "out" / bulk.MANIFEST).write_text("{")
    with pytest.raises(SettingError, match="output"):
        run("a.parquet")
