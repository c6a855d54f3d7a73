"""What the page and the API do: the same as the library, within the folders, for several users."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scoresde import registry, samplers, score
from scoresde.latent import KLAutoencoder
from scoresde.runs.draw import draw
from scoresde.runs.edit import SETTINGS
from scoresde.runs.folder import RunFolder, append, write_start
from scoresde.runs.pictures import pixels
from scoresde.runs.recipe import KINDS, recipe
from scoresde.ui import service
from scoresde.ui.api import ROUTES, opened, respond
from scoresde.ui.folders import Models
from scoresde.ui.jobs import NotFound
from scoresde.ui.settings import Comparing, Editing, Sampling, read, restored, values
from scoresde.ui.training import Training, Trainings
from tests.cli.conftest import IMAGES, POINTS, save_model

FEW = {"steps": 3, "sampler": "heun", "grid": "karras"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with a run, and checkpoints of digits and of points with random weights."""
    found = tmp_path_factory.mktemp("named") / "runs"
    found.mkdir()
    run = RunFolder(found / "run")
    write_start(run, "data: moons\n", {"scoresde": "0"})
    append(run, {"step": 12, "loss": 1.0})
    run.samples.mkdir()
    run.sample(12).touch()
    save_model(run.best, POINTS)
    save_model(found / "digits.pt", IMAGES, spread=0.05)
    save_model(found / "plain.pt", IMAGES)
    save_model(found / "points.pt", POINTS)
    np.save(found.parent / "x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    numbers = {k: v for k, v in POINTS.items() if not k.startswith("data.")}
    numbers |= {"data.kind": "arrays", "data.path": str(found.parent / "x.npy")}
    save_model(found / "numbers.pt", numbers)
    (found / "one.yaml").write_text("data: moons\n")
    return found


@pytest.fixture(scope="module")
def studio(root):
    with opened((root,), waiting=300) as found:
        yield found


@pytest.fixture
def go(studio):
    """Do something as a job, and return it when it has ended."""

    def done(work, kind, *more, **given):
        settings = read(kind, given)
        job = studio.jobs.submit("test", lambda job: work(studio.models, settings, *more, job))
        studio.jobs.wait(job, 60)
        assert not job.error, job.error
        return job

    return done


@pytest.fixture
def model(studio, root):
    return studio.models(str(root / "digits.pt")).model


def shades(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def digit(model, k: int = 0) -> tuple[np.ndarray, bytes]:
    """A picture of the model, as its shades and as the bytes of a file."""
    x = draw(model, seeds=[100 + k], label=k, nfe=5).x
    found, file = pixels(x, model.data.scaling)[0, 0].numpy(), io.BytesIO()
    Image.fromarray(found).save(file, format="PNG")
    return found, file.getvalue()


# Drawing -----------------------------------------------------------------------------------------


def test_pictures_are_those_of_draw_and_say_how_they_were_drawn(go, root, model):
    name = str(root / "digits.pt")
    job = go(service.sample, Sampling, model=name, seeds="3-4,9", label="7", guidance=2.0, **FEW)
    sampler = registry.GridSampler(registry.GRIDS["karras"](), samplers.Heun(), 3)
    same = draw(model, seeds=[3, 4, 9], label=7, guidance=2.0, sampler=sampler)
    expected = pixels(same.x, model.data.scaling)[:, 0].numpy()
    files = [job.folder / f"{k:06d}.png" for k in range(3)]
    assert np.array_equal(np.stack(list(map(shades, files))), expected)
    assert job.record["nfe"] == same.nfe
    found = recipe(files[2])
    assert (found["seed"], found["class"], found["guidance"]) == (9, "7", 2.0)


def test_a_picture_gives_its_settings_back_and_is_drawn_again_from_them(go, studio, root):
    given = {"model": str(root / "digits.pt"), "seeds": "5", "label": "2", "grid": "karras"}
    given |= {"sampler": "dpmpp_2m_sde", "steps": 4, "options": "sampler.eta=0.5 grid.rho=5"}
    first = go(service.sample, Sampling, **given).folder / "000000.png"
    found = service.asked_by(first, studio.models)
    assert found["model"] is None  # a single checkpoint is not listed
    again = go(service.sample, Sampling, **found | {"model": given["model"]})
    assert np.array_equal(shades(first), shades(again.folder / "000000.png"))
    before, after = read(Sampling, given), read(Sampling, found | {"model": given["model"]})
    config = studio.models(given["model"]).config
    assert before.section(config) == after.section(config)


def test_a_sentence_of_a_picture_becomes_the_prompt():
    found = dict.fromkeys(KINDS) | {"seed": 1, "guidance": 3.0, "denoise": True, "steps": 5}
    found |= {"sampler": {"kind": "heun"}, "conditions": {"text": "a hat", "size": 2}}
    found |= {"negative": {"text": "a beard"}}
    given = restored(found, "m", "text")
    assert (given["prompt"], given["negative"]) == ("a hat", "a beard")
    assert given["conditions"] == '{"size": 2}'
    other = restored(found, "m")
    assert other["prompt"] is None
    assert other["conditions"] == '{"text": "a hat", "size": 2}'
    assert read(Sampling, given).steps == 5


def test_points_are_drawn_as_a_picture_and_arrays(go, root):
    job = go(service.sample, Sampling, model=str(root / "points.pt"), seeds="0-9", **FEW)
    assert {"scatter.png", "samples.npz"} <= set(job.record["files"])


def test_previews_are_files_that_exist(go, root):
    job = go(service.sample, Sampling, model=str(root / "digits.pt"), seeds="0-3", **FEW)
    assert job.shown is not None
    assert shades(job.shown).ndim == 3


def test_a_stopped_drawing_keeps_the_denoised_state(studio, root):
    settings = read(
        Sampling, {"model": str(root / "digits.pt"), "seeds": "0-2", "steps": 500, "label": "1"}
    )

    def work(job):
        look = job.look

        def stop_at_the_third(first, call):
            look(first, call)
            if call.number == 3:
                studio.jobs.cancel(job)

        job.look = stop_at_the_third
        return service.sample(studio.models, settings, job)

    job = studio.jobs.wait(studio.jobs.submit("test", work), 60)
    assert (job.state, job.error, job.record["unfinished"], job.record["nfe"]) == (
        *("stopped", ""),
        *(3, 3.0),
    )
    assert (job.folder / "000002.png").exists()


def test_a_search_for_a_grid_is_stopped_half_way_and_stores_nothing(studio, root):
    given = {"model": str(root / "digits.pt"), "sampler": "dpmpp_2m", "grid": "optimised"}
    given |= {"seeds": "0", "steps": 4, "options": "grid.budget=1000000"}
    begun = respond(studio, "POST", "/sample", {}, given)
    job = studio.jobs.get(begun.body["job"])
    end = time.monotonic() + 60
    while not job.share and time.monotonic() < end:
        time.sleep(0.01)
    studio.jobs.cancel(job)
    assert not studio.jobs.wait(job, 60).error
    assert (job.state, job.record) == ("stopped", {})
    assert 0 < job.share < 0.5
    assert not (root / "grids").exists()


def test_two_users_do_not_see_each_others_settings(studio, root):
    """Each of 8 threads gets pictures of its own seed and class."""
    found: dict[int, dict] = {}

    def use(k: int) -> None:
        body = {"model": str(root / "digits.pt"), "seeds": str(k), "label": str(k), **FEW}
        begun = respond(studio, "POST", "/sample", {}, body).body
        job = studio.jobs.wait(studio.jobs.get(begun["job"]), 60)
        found[k] = recipe(job.folder / "000000.png")

    threads = [threading.Thread(target=use, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {k: (r["seed"], r["class"]) for k, r in found.items()} == {
        k: (k, str(k)) for k in range(8)
    }


def test_only_the_page_and_the_server_need_gradio():
    web = re.compile(r"^\s*(?:import|from) (?:gradio|fastapi|starlette|uvicorn|pandas)\b", re.M)
    files = Path(service.__file__).parent.glob("*.py")
    assert {f.name for f in files if web.search(f.read_text())} == {"page.py", "server.py"}


# Choices -----------------------------------------------------------------------------------------


def test_every_name_of_the_registry_is_offered_and_a_new_one_appears_by_itself(monkeypatch):
    assert [entry["name"] for entry in service.samplers()] == list(registry.SAMPLERS)
    assert {e["name"] for e in service.grids()} == set(registry.GRIDS) - {"file"}
    assert [entry["name"] for entry in service.operations()] == list(SETTINGS)
    monkeypatch.setattr(registry.STEPS, "_entries", dict(registry.STEPS._entries))
    monkeypatch.setattr(registry.GRIDS, "_entries", dict(registry.GRIDS._entries))
    registry.register("step", "mine", samplers.Heun)
    registry.register("grid", "mine", samplers.ArctanGrid)
    (mine,) = [entry for entry in service.samplers() if entry["name"] == "mine"]
    assert (mine["order"], mine["calls"], mine["noise"]) == (2, 2, False)
    assert "mine" in [entry["name"] for entry in service.grids()]


def test_runs_and_exports_are_listed_and_described(studio, root):
    run = str(root / "run")
    assert studio.folders.models() == [run]
    assert studio.folders.configurations() == [str(root / "one.yaml")]
    about = respond(studio, "GET", "/models", {"model": run}).body
    assert (about["shape"], about["step"], about["classes"]) == ([2], 7, None)
    about = service.about(studio.models(str(root / "digits.pt")), "digits")
    assert about["classes"] == [str(k) for k in range(10)]


def test_names_that_are_no_text_are_not_listed(studio, root):
    before = studio.folders.models(), studio.folders.configurations()
    for name in (b"\xff.yaml", b"a\nb.yaml"):
        (root / os.fsdecode(name)).write_text("data: moons\n")
    odd = root / "ä %2e%2e b"
    shutil.copytree(root / "run", odd / "run")
    shutil.copytree(root / "run", root / os.fsdecode(b"\xfe"))
    assert studio.folders.configurations() == before[1]
    assert set(studio.folders.models()) == {*before[0], str(odd / "run")}
    assert respond(studio, "GET", "/models", {"model": str(odd / "run")}).status == 200
    shutil.rmtree(odd)
    assert respond(studio, "GET", "/models", {"model": str(odd / "run")}).status == 404


def test_a_model_is_loaded_again_when_its_files_change_and_not_before(studio, root):
    path = root / "changing.pt"
    save_model(path, POINTS)
    first = studio.models(str(path))
    assert studio.models(str(path)) is first
    save_model(path, POINTS, spread=0.1)
    time.sleep(0.01)
    path.touch()
    assert studio.models(str(path)).digest != first.digest
    path.unlink()
    with pytest.raises(NotFound):
        studio.models(str(path))


@pytest.mark.parametrize("name", ["/etc", "run/../../..", "~", "", "\0", "x" * 5000, "away"])
def test_a_path_outside_the_named_folders_is_not_found(studio, root, name):
    (root / "away").unlink(missing_ok=True)
    (root / "away").symlink_to("/etc")
    where = name if name.startswith(("/", "~")) else f"{root}/{name}" if name else name
    if not name:
        where = str(root.parent)
    for path, body in (("/sample", {"model": where}), ("/compare", {"model": where})):
        found = respond(studio, "POST", path, {}, body)
        assert found.status == 404
        assert "\n" not in found.body["error"]
    assert respond(studio, "GET", "/models", {"model": where}).status == 404


# Editing -----------------------------------------------------------------------------------------


def test_a_painted_mask_is_filled_and_the_rest_is_kept(go, root, model):
    before, content = digit(model)
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:7] = True
    large = service.outlined(before[None])
    factor = len(large) // 8
    alpha = np.zeros(large.shape[:2])
    alpha[2 * factor : 5 * factor, factor : 7 * factor] = 255
    assert np.array_equal(service.painted(alpha, 8, 8), mask)
    job = go(
        *(service.edited, Editing, [content], mask), model=str(root / "digits.pt"), nfe=12,
        seeds="0-1",
    )  # fmt: skip
    for k in range(2):
        after = shades(job.folder / f"{k:06d}.png")
        assert np.array_equal(after[~mask], before[~mask])
        assert not np.array_equal(after, before)
    assert job.record["seeds"] == [0, 1]


def test_a_way_between_two_pictures_has_both_at_its_ends(go, root, model):
    ends = [digit(model, k) for k in range(2)]
    job = go(
        service.edited, Editing, [content for _, content in ends], None,
        model=str(root / "digits.pt"), operation="interpolate", columns=3,
    )  # fmt: skip
    for k, place in ((0, 0), (1, 2)):
        gap = shades(job.folder / f"{place:06d}.png").astype(int) - ends[k][0]
        assert np.abs(gap).mean() < 16  # one of the 17 levels


def test_no_strength_returns_the_picture(go, root, model):
    before, content = digit(model)
    given = {"operation": "img2img", "strength": 0, "seeds": "0", **FEW}
    job = go(service.edited, Editing, [content], None, model=str(root / "digits.pt"), **given)
    assert np.array_equal(shades(job.folder / "000000.png"), before)


def test_a_picture_of_another_size_is_fitted_to_the_nearest_levels(studio, root, model):
    loaded, (before, content) = studio.models(str(root / "digits.pt")), digit(model)
    assert np.array_equal(service.shades_of(loaded, content, fit=True)[0], before)
    file = io.BytesIO()
    Image.new("RGBA", (100, 60), (90, 90, 90, 255)).save(file, format="PNG")
    found = service.shades_of(loaded, file.getvalue(), fit=True)
    assert found.shape == (1, 8, 8)
    assert set(found.flatten()) == {round(255 * 6 / 16)}  # 90 is nearest to level 6 of 0 to 16


# Comparing and inspecting ------------------------------------------------------------------------


def test_the_cells_of_a_table_start_from_the_same_noise_and_come_nearer_to_the_exact_path(
    go, root, model
):
    given = {"model": str(root / "digits.pt"), "seeds": "0-1", "columns": "4,40"}
    job = go(service.compared, Comparing, **given, rows="heun,ancestral", grid="karras")
    cells = job.record["cells"]
    assert [(c["row"], c["column"]) for c in cells] == [
        (f"sampler {row}", f"steps {n}") for row in ("heun", "ancestral") for n in (4, 40)
    ]
    assert [c["nfe"] for c in cells] == [9, 81, 5, 41]
    coarse, fine = (c["error"] for c in cells[:2])
    assert fine < 0.1 * coarse  # of order 2: a hundredth
    assert [c["error"] for c in cells[2:]] == [None, None]  # noise has no exact path
    assert shades(job.folder / "compare.png").ndim == 3


def test_a_cell_that_fails_says_why_and_the_others_are_drawn(go, root):
    save_model(root / "broken.pt", IMAGES, spread=1e20)
    names = "|".join(str(root / f"{name}.pt") for name in ("plain", "broken"))
    given = {"across": "model", "columns": names, "rows": "euler", "steps": 2, "seeds": "0"}
    job = go(service.compared, Comparing, model=str(root / "plain.pt"), **given)
    good, bad = job.record["cells"]
    assert (good["nfe"], good["failed"]) == (3, None)
    assert (bad["nfe"], bad["error"]) == (None, None)
    assert "not finite" in bad["failed"]
    assert shades(job.folder / "compare.png").ndim == 3


def test_cells_of_points_are_a_table_too(go, root):
    given = {"model": str(root / "points.pt"), "columns": "2,3", "rows": "euler,heun,ddim"}
    job = go(service.compared, Comparing, **given, reference=False)
    height, width, _ = shades(job.folder / "compare.png").shape
    assert height / width == pytest.approx(3 * 4.2 / (2 * 4), rel=0.01)


def test_settings_that_hold_commas_are_compared_too():
    assert values("0.2,5 | 0.5,2") == ["0.2,5", "0.5,2"]
    settings = read(
        Comparing,
        {
            "model": "m",
            "across": "guidance_interval",
            "columns": "0.2,5|0.5,2",
            "down": "sampler.eta",
            "rows": "0,1",
            "sampler": "ancestral",
        },
    )
    cells = settings.cells()
    assert [c.guidance_interval for c in cells[0]] == [(0.2, 5.0), (0.5, 2.0)]
    assert [row[0].options.split()[-1] for row in cells] == ["sampler.eta=0", "sampler.eta=1"]


def test_the_process_is_drawn_with_the_times_of_the_grid(go, root, model):
    job = go(service.scheduled, Sampling, model=str(root / "digits.pt"), **FEW)
    assert job.record["times"] == registry.GRIDS["karras"]()(model.sde, 3).tolist()
    assert (job.folder / "process.png").exists()


def test_a_trajectory_has_a_picture_for_every_network_call(go, root):
    job = go(service.followed, Sampling, model=str(root / "digits.pt"), seeds="0-1", **FEW)
    assert len(job.record["files"]) == job.record["nfe"] == 7
    assert all((job.folder / name).exists() for name in job.record["files"])


def test_the_bits_of_a_picture_have_errors_and_a_place_among_test_examples(
    go, root, model, monkeypatch
):
    monkeypatch.setattr(service, "BESIDE", 3)
    _, content = digit(model)
    job = go(service.scored, Sampling, [content], False, model=str(root / "plain.pt"))
    record = job.record
    assert math.isfinite(record["bits_per_dim"])
    assert record["draws_error"] > 0
    assert 3 * record["below"] == round(3 * record["below"])
    assert record["examples"] == 3
    monkeypatch.setattr(service, "build_dataset", None)  # they are scored once
    again = go(service.scored, Sampling, [content], False, model=str(root / "plain.pt")).record
    assert again == record
    assert (job.folder / "histogram.png").exists()


def test_the_latent_is_scored_where_pictures_have_no_law(go, studio, root, monkeypatch):
    monkeypatch.setattr(service, "BESIDE", 2)
    name = str(root / "plain.pt")
    model = copy.deepcopy(studio.models(name).model)
    model.codec = KLAutoencoder(1, 1, widths=(8,), groups=4).eval()
    loaded = replace(studio.models(name), model=model)
    monkeypatch.setattr(Models, "__call__", lambda *_: loaded)
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(content, format="PNG")
    record = go(service.scored, Sampling, [content.getvalue()], False, model=name).record
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    own = score(model, x, of="latents", check=1)
    assert record["bits_per_dim"] == own.bits_per_dim
    assert record["examples"] == 2
    assert "latent" in record["warnings"][0]


def test_files_are_refused_by_a_model_of_points(studio, root):
    points = studio.models(str(root / "points.pt"))
    with pytest.raises(ValueError, match="no pictures; choose another"):
        service.shades_of(points, b"", True)


def test_the_flow_of_points_is_drawn_and_that_of_pictures_refused(go, studio, root, monkeypatch):
    monkeypatch.setattr("scoresde.runs.field_plot.POINTS", 6)
    monkeypatch.setattr("scoresde.runs.field_plot.PANELS", 1)
    job = go(service.flowed, Sampling, model=str(root / "points.pt"))
    assert (job.folder / "field.png").exists()
    settings = read(Sampling, {"model": str(root / "digits.pt")})
    job = studio.jobs.submit("test", lambda job: service.flowed(studio.models, settings, job))
    assert "points in the plane" in studio.jobs.wait(job, 60).error
    guided = read(Sampling, {"model": str(root / "digits.pt"), "label": "1", "guidance": 2})
    job = studio.jobs.submit(
        "test", lambda job: service.scored(studio.models, guided, [], False, job)
    )
    assert "not normalised" in studio.jobs.wait(job, 60).error


# The API -----------------------------------------------------------------------------------------


def test_200_requests_of_8_clients_are_all_answered_and_results_stay_bounded(studio, root):
    body = {"model": str(root / "numbers.pt"), "seeds": "0", "steps": 1, "sampler": "euler"}
    statuses: list[int] = []

    def use() -> None:
        for _ in range(25):
            found = respond(studio, "POST", "/sample", {}, body)
            statuses.append(found.status)
            jobs.append(studio.jobs.get(found.body["job"]))

    jobs: list = []
    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in jobs:
        studio.jobs.wait(job, 60)
    assert statuses == [200] * 200
    assert [job.state for job in jobs] == ["done"] * 200
    assert len(list((studio.work / "jobs").iterdir())) <= 64


def test_a_job_is_followed_and_its_files_are_fetched(studio, root):
    body = {"model": str(root / "digits.pt"), "seeds": "0", **FEW}
    begun = respond(studio, "POST", "/sample", {}, body).body
    studio.jobs.wait(studio.jobs.get(begun["job"]), 60)
    told = respond(studio, "GET", "/progress", {"job": begun["job"]}).body
    assert (told["state"], told["share"], told["place"]) == ("done", 1.0, 0)
    assert "000000.png" in told["files"]
    file = respond(studio, "GET", f"/jobs/{begun['job']}/000000.png", {}).body
    image = base64.b64encode(file.read_bytes()).decode()
    info = respond(studio, "POST", "/png-info", {}, {"image": image}).body
    assert info["info"].startswith("Steps: 3, Sampler: heun")
    assert info["settings"]["seeds"] == "0"
    for name in ("../../x", "given/picture-1.png", ""):
        assert respond(studio, "GET", f"/jobs/{begun['job']}/{name}", {}).status == 404
    file.unlink()
    assert respond(studio, "GET", f"/jobs/{begun['job']}/000000.png", {}).status == 404


@pytest.mark.parametrize(
    "damage",
    [
        {"checkpoint": "a\0b"},
        {"guidance": math.nan},
        {"guidance": 10**400},
        {"guidance_interval": ["a", "b"]},
    ],
)
def test_damaged_settings_of_a_picture_are_400(studio, damage):
    told = {"checkpoint": "x", "seed": 1, "sampler": {"kind": "heun"}, "steps": 3, "denoise": True}
    told |= {"weights": "ema", **damage}
    info, file = PngInfo(), io.BytesIO()
    info.add_text("scoresde", json.dumps(told))
    Image.new("L", (2, 2)).save(file, format="PNG", pnginfo=info)
    body = {"image": base64.b64encode(file.getvalue()).decode()}
    found = respond(studio, "POST", "/png-info", {}, body)
    assert found.status == 400
    assert found.body["error"].startswith("image: its settings are damaged (")


def test_bad_requests_are_one_line_with_a_remedy(studio, root):
    name = str(root / "digits.pt")
    sized = io.BytesIO()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(sized, format="PNG")
    image = base64.b64encode(sized.getvalue()).decode()
    bomb = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)),
            *((b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
        )
    )
    bomb = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bomb).decode()
    broken = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()
    table = [
        ("/sample", {"model": name, "seeds": "0-9999"}, 400, "at most 256 at once, got 10,000"),
        ("/sample", {"model": name, "step": 3}, 400, "did you mean 'steps'?"),
        ("/sample", {"model": name, "sampler": "heum"}, 400, "heun"),
        ("/sample", {"model": name, "grid": "file"}, 400, "choose another"),
        ("/sample", {"model": name, "options": "grid.path=/etc/passwd"}, 400, "choose another"),
        ("/sample", {"model": name, "steps": 10**9}, 400, "10000"),
        ("/sample", {"model": name, "label": "eleven"}, 400, "no class 'eleven'"),
        ("/sample", {"model": name, "prompt": "a hat"}, 400, "leave it out"),
        ("/sample", {}, 400, "model is missing"),
        ("/sample", [1], 400, "need a JSON object"),
        ("/compare", {"model": name, "rows": ",".join(map(str, range(90)))}, 400, "at most 64"),
        (
            *(
                "/compare",
                {"model": name, "across": "seeds", "columns": "0-255|1", "rows": "heun"},
            ),
            *(400, "257 samples; at most 256"),
        ),
        ("/edit", {"model": name, "picture": [image]}, 400, "did you mean 'pictures'?"),
        ("/edit", {"model": name, "pictures": [image] * 65}, 400, "at most 256"),
        ("/edit", {"model": name, "columns": 10**9}, 400, "256"),
        ("/png-info", {"imag": image}, 400, "did you mean 'image'?"),
        ("/png-info", {"image": bomb}, 400, "no picture that can be read"),
        ("/interrupt", {"job": "x", "jobs": "x"}, 400, "did you mean 'job'?"),
        ("/edit", {"model": name, "pictures": ["*"]}, 400, "base64"),
        ("/png-info", {"image": broken}, 400, "no picture that can be read"),
        ("/png-info", {"image": image}, 400, "holds no settings"),
        ("/interrupt", {"job": "none"}, 404, "no job"),
        ("/interrupt", {}, 400, "job is missing"),
        ("/nowhere", {}, 404, "no such address"),
    ]
    for path, body, status, words in table:
        found = respond(studio, "POST", path, {}, body)
        assert found.status == status, (path, body, found)
        assert words in found.body["error"]
        assert "\n" not in found.body["error"]
    assert respond(studio, "GET", "/sample", {}).status == 405
    assert respond(studio, "POST", "/jobs/none", {}, {}).status == 405
    assert "mean 'model'?" in respond(studio, "GET", "/models", {"modle": "x"}).body["error"]
    assert respond(studio, "GET", "/samplers", {"model": "x"}).status == 400
    assert respond(studio, "POST", "/interrupt", {"jobs": "x"}, {"job": "x"}).status == 400
    assert all(path.startswith("/") for path in ROUTES)
    edits = [
        ({"pictures": [image]}, "5 x 5 pixels"),
        ({"pictures": [broken]}, "not a usable picture"),
        ({"pictures": [bomb], "fit": True}, "not a usable picture"),
        ({"pictures": []}, "picture is missing"),
    ]
    for body, words in edits:
        begun = respond(studio, "POST", "/edit", {}, {"model": name, "mask": image} | body)
        job = studio.jobs.wait(studio.jobs.get(begun.body["job"]), 60)
        assert words in job.told()["error"]
        assert str(job.folder) not in job.told()["error"]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match="20 x 20 pixels are no multiple of the 8 x 8 of the model"
    ):
        service.painted(np.ones((20, 20)), 8, 8)


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"out": "/elsewhere/x"}, NotFound, "not there"),
        ({"out": "{root}/a b"}, NotFound, "no name of a folder"),
        ({"out": "{root}/new", "configuration": "/etc/passwd"}, NotFound, "not there"),
        ({"out": "{root}/new", "changes": "train.stepz=3"}, ValueError, "mean .steps."),
        ({"out": "{root}/new", "changes": "--config x"}, ValueError, "write keys"),
        (
            {"out": "{root}/new", "changes": "data.kind=arrays data.path=/etc"},
            *(NotFound, "not there"),
        ),
        ({"out": "{root}/run"}, ValueError, "holds a run"),
        ({"out": "{root}/new", "resume": True}, ValueError, "no run to resume"),
    ],
)
def test_a_training_that_may_not_begin_says_why(studio, root, given, error, words):
    given = {k: v.format(root=root) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(error, match=words):
        studio.trainings.start(**given)
    assert not (root / "new").exists()


def test_a_run_is_watched_by_what_it_wrote(studio, root):
    report = studio.trainings.report(str(root / "run"))
    assert report["state"] == ""
    assert report["step"] == 12
    assert shades(report["loss"]).ndim == 3
    assert all(Path(path).exists() for path in report["samples"])
    with pytest.raises(ValueError, match="no training that was started here"):
        studio.trainings.stop(str(root / "run"))


def test_a_training_is_asked_to_end_once_and_by_another_page_only_if_it_is_sure(studio, root):
    """A second signal would end it before its checkpoint is saved."""

    class Process:
        sent: ClassVar[list[int]] = []

        def poll(self):
            return None

        def send_signal(self, number):
            self.sent.append(number)

    trainings, run = Trainings(studio.folders, studio.work / "logs"), str(root / "run")
    trainings._running[(root / "run").resolve()] = Training(Process(), "me")
    with pytest.raises(ValueError, match="another page; stop again"):
        trainings.stop(run, "you")
    assert not Process.sent
    trainings.stop(run, "you", sure=True)
    trainings.stop(run, "me")
    assert Process.sent == [signal.SIGTERM]


def test_every_run_has_a_log_of_its_own(studio, root):
    names = ["a-b", "a.b", "ä", "ö", "x" * 120 + "y", "z" + "x" * 119 + "y"]
    assert len({studio.trainings._log(root / name) for name in names}) == len(names)


@pytest.mark.slow
def test_a_training_is_a_process_that_stops_with_a_checkpoint_and_goes_on(studio, root):
    trainings, out = Trainings(studio.folders, studio.work / "logs", "cpu"), str(root / "long")
    keys = "data.train=200 data.test=20 network.kind=mlp network.width=8 train.log_every=5"
    trainings.start(out, str(root / "one.yaml"), f"{keys} train.steps=1000000")

    def until(holds):
        end = time.monotonic() + 60
        while not holds(report := trainings.report(out)):
            assert time.monotonic() < end, report
            time.sleep(0.2)
        return report

    until(lambda report: report["step"])
    with pytest.raises(ValueError, match="being trained already"):
        trainings.start(out, None, "", resume=True)
    trainings.stop(out)
    step = until(lambda report: report["state"] == "stopped")["step"]
    trainings.start(out, resume=True)
    until(lambda report: report["step"] > step)
    trainings.close()
    assert trainings.report(out)["state"] == "stopped"


def test_a_table_has_no_value_twice_in_two_forms():
    given = {"model": "m", "down": "guidance", "rows": "1,1.0", "columns": "5"}
    with pytest.raises(ValueError, match="two values are the same"):
        read(Comparing, given).cells()
    assert len(read(Comparing, given | {"rows": "1,2"}).cells()) == 2
