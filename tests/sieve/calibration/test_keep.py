"""Where calibrations are kept: users' files stay, the cache is private and never ends a run, damage is noticed."""

import os
import random
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

import sieve
from sieve.calibration.statistics import Statistics
from sieve.errors import InputError, StorageError
from sieve.utils import progress
from sieve.utils.files import cache_folder

TOKENS = 1000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture(scope="module")
def loaded(world):
    return sieve.load_model(world.model)


@pytest.fixture
def calibrate(world, loaded, capsys):
    """Calibrate into a path: the statistics and what the user is told."""

    def call(path, tokens=TOKENS) -> tuple[Statistics, str]:
        with progress.shown():
            statistics = sieve.calibrate(*loaded, world.task, tokens=tokens, path=path)
        return statistics, capsys.readouterr().err

    return call


def same(one: Statistics, other: Statistics) -> bool:
    return all(torch.equal(one.grams[key], other.grams[key]) for key in one.grams | other.grams)


def files(folder):
    return sorted(file.name for file in folder.iterdir())


class TestUsersFiles:
    def test_a_folder_keeps_everything(self, tmp_path, calibrate, cache):
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({"w": torch.ones(2)}, folder / "model.safetensors")
        save_file({"w": torch.ones(2)}, folder / "0123456789abcdef.safetensors")
        before = {file: file.read_bytes() for file in folder.iterdir()}
        for tokens in (TOKENS, TOKENS + 1):
            calibrate(folder, tokens)
        assert all(file.read_bytes() == content for file, content in before.items())
        assert len(files(folder)) == len(before) + 2
        assert "reused" in calibrate(folder)[1]

    @pytest.mark.parametrize("name", ["model.safetensors", "notes.txt"])
    def test_a_file_of_another_kind_is_refused_and_stays(self, tmp_path, calibrate, name):
        file = tmp_path / name
        save_file({"w": torch.ones(2)}, file) if name.endswith("s") else file.write_text("mine")
        before = file.read_bytes()
        with pytest.raises(StorageError, match=r"no calibration of Sieve's.* name another file") as caught:
            calibrate(file)
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == before

    @pytest.mark.parametrize("place", ["/proc/nope/statistics.safetensors", "/proc/nope", "{}/taken.safetensors"])
    def test_a_place_that_cannot_be_used_is_named_at_once(self, world, tmp_path, monkeypatch, place):
        (tmp_path / "taken.safetensors").write_text("mine")
        monkeypatch.setattr("sieve.run.pipeline.load_model", lambda *args: pytest.fail("loaded first"))
        recipe = sieve.Recipe(world.model, world.task)
        with pytest.raises(StorageError, match=r"cannot write /proc/nope|taken\.safetensors is no calibration"):
            sieve.prune(recipe, tmp_path / "out", statistics=place.format(tmp_path))
        assert [file.name for file in tmp_path.iterdir()] == ["taken.safetensors"]


class TestCache:
    def test_it_is_private_and_keeps_the_last(self, calibrate, cache):
        for tokens in (TOKENS, TOKENS + 1):
            calibrate(cache_folder("calibration"), tokens)
        assert [stat.S_IMODE(place.stat().st_mode) for place in (cache.parent, cache)] == [0o700, 0o700]
        assert len(files(cache)) == 1
        assert stat.S_IMODE(next(cache.iterdir()).stat().st_mode) == 0o600
        assert "reused" in calibrate(cache, TOKENS + 1)[1]

    def test_it_takes_what_sieve_made_and_nothing_else(self, calibrate, cache):
        """A cache may be shared with other things."""
        calibrate(cache_folder("calibration"))
        ours = next(cache.iterdir())
        (cache / "mine.safetensors").write_bytes(ours.read_bytes())
        save_file({"w": torch.ones(2)}, cache / "0123456789abcdef.safetensors")
        (cache / "fedcba9876543210.safetensors").write_text("broken")
        kept = set(files(cache)) - {ours.name}
        calibrate(cache, TOKENS + 1)
        assert kept < set(files(cache))
        assert ours.name not in files(cache)

    @pytest.mark.parametrize("place", ["/proc/nope", "file", "read-only"])
    def test_a_run_goes_on_without_it(self, tmp_path, monkeypatch, calibrate, capsys, place):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SIEVE_CACHE", {"file": f"{tmp_path}/file"}.get(place, place))
        if place == "read-only":
            monkeypatch.setenv("SIEVE_CACHE", f"{tmp_path}/cache")
            path = cache_folder("calibration")
            monkeypatch.setattr("sieve.utils.files.os.fsync", refuse)
        else:
            with progress.shown():
                path = cache_folder("calibration")
                assert path is None
                assert cache_folder("calibration") is None
            assert capsys.readouterr().err.count("going on without a cache") == 1
        told = calibrate(path)[1]
        assert ("is not kept" in told) == (place == "read-only")

    def test_no_home(self, monkeypatch):
        monkeypatch.delenv("SIEVE_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def unknown(path):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr("sieve.utils.files.Path.expanduser", unknown)
        assert cache_folder("calibration") is None

    @pytest.mark.parametrize("which", ["cache", "calibration", "file"])
    @pytest.mark.parametrize("how", ["open to everyone", "another's"])
    def test_what_others_may_have_written_is_not_used(self, calibrate, cache, which, how, capsys):
        expected, _ = calibrate(cache_folder("calibration"))
        file = next(cache.iterdir())
        place = {"cache": cache.parent, "calibration": cache, "file": file}[which]
        if how == "open to everyone":
            place.chmod(0o777 if place.is_dir() else 0o666)
        elif os.getuid() == 0:
            os.chown(place, 12345, 12345)
        else:
            pytest.skip("only root can give files away")
        if which == "file":
            statistics, told = calibrate(cache_folder("calibration"))
            assert "made again" in told
            assert same(statistics, expected)
            assert "reused" in calibrate(cache)[1]  # the new one is ours
        else:
            with progress.shown():
                assert cache_folder("calibration") is None
            assert "the cache is not used" in capsys.readouterr().err

    def test_a_sticky_folder_may_hold_it(self, tmp_path, monkeypatch):
        """As /tmp, where every user can make files and none can exchange another's."""
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o1777)
        monkeypatch.setenv("SIEVE_CACHE", str(tmp_path / "shared"))
        assert cache_folder("calibration") == tmp_path / "shared" / "calibration"


def refuse(descriptor):
    raise OSError(30, "Read-only file system")


class TestDamage:
    @pytest.fixture
    def file(self, tmp_path, calibrate):
        calibrate(tmp_path / "statistics.safetensors")
        return tmp_path / "statistics.safetensors"

    def test_every_flipped_bit_is_noticed(self, file):
        content, chance = file.read_bytes(), random.Random(0)
        header = 8 + int.from_bytes(content[:8], "little")
        places = [*range(8), *(chance.randrange(header) for _ in range(150)), *(
            chance.randrange(header, len(content)) for _ in range(50)
        )]  # fmt: skip
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << chance.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(StorageError, match=str(file)) as caught:
                Statistics.load(file)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "header", ["{}", "[]", "null", "[" * 100_000, '{"version": 3}', '{"version": 2}', "\ud7ff", '{"version": [3]}']
    )
    def test_headers_of_other_shapes(self, file, header):
        save_file(load_file(file), file, metadata={"sieve_statistics": header})
        with pytest.raises(StorageError, match=str(file)) as caught:
            Statistics.load(file)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_a_damaged_calibration_in_the_cache_is_made_again(self, calibrate, cache):
        expected, _ = calibrate(cache_folder("calibration"))
        file = next(cache.iterdir())
        content = bytearray(file.read_bytes())
        content[-5] ^= 4
        file.write_bytes(content)
        statistics, told = calibrate(cache)
        assert "made again" in told
        assert same(statistics, expected)
        assert "reused" in calibrate(cache)[1]

    def test_another_identity_is_refused(self, file, calibrate):
        with pytest.raises(InputError, match="of another data"):
            calibrate(file, TOKENS + 1)
