"""A checkpoint that is not what was written is refused, by the file's name; nothing in it is executed."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import build_model
from parallel.checkpoint.blocks import BLOCK, BlockReader, BlockWriter, Damaged
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import read_contents
from parallel.checkpoint.load import load_state
from parallel.mesh import Mesh
from parallel.sharding.layout import shards
from tests.parallel.checkpoint.nets import held_state, numbered, write
from tests.parallel.sharding.test_layout import NETS
from tests.saved import flip_byte

WEIGHTS = "rank-0001.weight.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        net = build_model(NETS["vit"])
    path = tmp_path_factory.mktemp("saved") / "step"
    write(path, net, (1, 2, 1))
    return path


@pytest.fixture
def saved(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "step")


def load(saved: Path, mesh: Mesh, verify: bool = True) -> None:
    with torch.device("meta"):
        net = build_model(NETS["vit"])
    state = held_state(net, numbered(net), mesh, 0, {})
    load_state(Catalogue(read_contents(saved), verify), state, shards(net, mesh))


class Planted:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Planted, "ran", True))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def replace_by_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Planted()))


def replace_by_large_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Planted()).ljust(file.stat().st_size, b"."))


def say_more(file: Path) -> None:
    """Valid JSON with another number in it."""
    file.write_text(file.read_text().replace('"samples": 56', '"samples": 57').replace('"at":', '"at":1'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, lambda file: flip_byte(file, -7)),
        (WEIGHTS, cut),
        (WEIGHTS, Path.unlink),
        (WEIGHTS, replace_by_pickle),
        (WEIGHTS, replace_by_large_pickle),
        ("rank-0000.exp_avg_sq.safetensors", lambda file: flip_byte(file, -2000)),
        ("rank-0001.weight.crc32", lambda file: flip_byte(file, 0)),
        ("rank-0001.weight.crc32", Path.unlink),
        ("rank-0001.json", lambda file: flip_byte(file, 300)),
        ("rank-0001.json", say_more),
        ("rank-0001.json", replace_by_pickle),
        ("rank-0000.json", Path.unlink),
        ("index.json", cut),
        ("index.json", say_more),
        ("index.json", replace_by_pickle),
    ],
)
def test_damage_is_named_on_the_mesh_that_wrote_it_and_on_others(
    saved: Path, name: str, damage: Callable[[Path], None]
):
    damage(saved / name)
    for mesh in (Mesh(1, 2, 1, 0), Mesh(1, 2, 1, 1), Mesh(1, 1, 2, 0), Mesh()):
        own = mesh.offset == 1 or name in ("index.json", "rank-0000.json", "rank-0001.json")
        if not own and int(name[5:9]) != mesh.rank:
            continue  # which reads nothing of that file
        with pytest.raises(Damaged, match=name):
            load(saved, mesh)
    assert not Planted.ran


def test_pickles_beside_the_files_are_not_looked_at(saved: Path):
    for name in (".metadata", "rank-0002.pt", "index.pkl", "rank-0000.weight.pt"):
        (saved / name).write_bytes(pickle.dumps(Planted()))
    load(saved, Mesh())
    assert not Planted.ran
    pickle.loads((saved / ".metadata").read_bytes())
    assert Planted.ran  # so it would have run
    Planted.ran = False


def test_files_outside_the_folder_cannot_be_named(saved: Path):
    """Checksums are no signatures: whoever can write here can make them fit."""
    from parallel.checkpoint.contents import Index, ManifestFile, read_index, write_index

    shutil.copy(saved / "rank-0000.json", saved.parent / "rank-0000.json")
    index = read_index(saved)
    with pytest.raises(ValueError, match="pattern"):
        ManifestFile(name="../rank-0000.json", bytes=1, crc32=0)
    wrong = ManifestFile.model_construct(name="../rank-0000.json", bytes=1, crc32=0)
    write_index(saved, Index.model_construct(**(index.__dict__ | {"manifests": (wrong,)})))
    with pytest.raises(Damaged, match=r"index\.json: manifests\.0\.name"):
        read_contents(saved)


def test_a_part_that_no_rank_wrote_is_noticed(whole: Path, tmp_path: Path):
    """torch.distributed.checkpoint alone would leave the old values in its place."""
    contents = read_contents(whole)
    fewer = [m.model_copy(update={"boxes": m.boxes[:-1]}) for m in contents.manifests]
    with torch.device("meta"):
        net = build_model(NETS["vit"])
    state = held_state(net, numbered(net), Mesh(), 0, {})
    catalogue = Catalogue(type(contents)(contents.folder, contents.index, fewer))
    with pytest.raises(Damaged, match="is not all there"):
        load_state(catalogue, state, shards(net, Mesh()))


def test_without_verification_a_flipped_byte_is_loaded_and_a_cut_file_is_not(saved: Path):
    flip_byte(saved / WEIGHTS, -7)
    load(saved, Mesh(), verify=False)
    cut(saved / WEIGHTS)
    with pytest.raises(Damaged, match=WEIGHTS):
        load(saved, Mesh(), verify=False)


@pytest.mark.parametrize("start", [0, 5, BLOCK - 1, BLOCK, 3 * BLOCK + 17])
@pytest.mark.parametrize("length", [1, 100, BLOCK, 600 * BLOCK])
def test_any_range_of_bytes_is_verified(start: int, length: int, tmp_path: Path):
    """Also one that begins and ends within a block."""
    path, data = tmp_path / "a.safetensors", bytes(range(251)) * (605 * BLOCK // 251)
    with BlockWriter(path) as writer:
        for at in range(0, len(data), 1_000_003):
            writer.write(data[at : at + 1_000_003])
        size, checksum = writer.size, writer.close()
    assert size == len(data)
    assert path.read_bytes() == data
    target = bytearray(length)
    reader = BlockReader(path, size, checksum)
    reader.read_into(start, memoryview(target))
    assert target == data[start : start + length]
    flip_byte(path, (start + length - 1) // BLOCK * BLOCK)
    reader = BlockReader(path, size, checksum)
    with pytest.raises(Damaged, match=r"a\.safetensors: bytes from"):
        reader.read_into(start, memoryview(target))


def test_safetensors_files_can_be_read_by_their_library(whole: Path):
    from safetensors.torch import load_file

    tensors = load_file(whole / "rank-0000.weight.safetensors")
    header = json.loads((whole / "rank-0000.weight.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert tensors.keys() == header.keys()
    with torch.device("meta"):
        net = build_model(NETS["vit"])
    bank = numbered(net)["weight"]["layers.0.mixer.q_bank"]
    entries = shards(net, Mesh(1, 2, 1, 0))["layers.0.mixer.q_bank"].entries
    assert entries
    for head in range(4):
        found = tensors[f"layers.0.mixer.q_bank[{entries[-1]}]@0,{2 * head}"]
        assert torch.equal(found, bank[entries[-1], :, 2 * head : 2 * head + 2])
