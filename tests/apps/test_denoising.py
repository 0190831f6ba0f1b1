"""Denoising: regularizers by formula, a bound that holds, a gain on crops that were held out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from scipy.signal import correlate2d

import bilevel as bl
from bilevel.apps.denoising import crops
from bilevel.apps.denoising.learn import denoise, learn, psnr
from bilevel.apps.denoising.problem import FieldsOfExperts, TotalVariation, cosines, problem
from bilevel.apps.denoising.settings import Denoise
from bilevel.files import read_pictures, write_picture
from bilevel.methods import MAID
from bilevel.problem import Batch

DRAW = np.random.default_rng(0)


def shapes(count: int, side: int = 16) -> np.ndarray:
    """Bright discs on a dark ground."""
    place = np.arange(side)
    centres, radii = DRAW.uniform(0, side, (count, 2, 1, 1)), DRAW.uniform(3, 8, (count, 1, 1))
    distance = np.hypot(place[:, None] - centres[:, 0], place - centres[:, 1])
    return 0.2 + 0.6 * (distance < radii)


def test_total_variation_by_formula():
    y = DRAW.normal(size=(2, 4, 5))
    total = 0.0
    for one in y:
        for i in range(4):
            for j in range(5):
                down = one[min(i + 1, 3), j] - one[i, j]
                right = one[i, min(j + 1, 4)] - one[i, j]
                total += np.sqrt(down**2 + right**2 + 0.3**2)
    x = {"weight": jnp.log(2.0), "smoothing": jnp.log(0.3)}
    np.testing.assert_allclose(TotalVariation()(x, jnp.asarray(y)), 2 * total)


def test_fields_of_experts_by_formula():
    experts, y = FieldsOfExperts(3), DRAW.normal(size=(2, 6, 7))
    x = {
        "weights": jnp.asarray(DRAW.normal(size=8)),
        "filters": jnp.asarray(DRAW.normal(size=(8, 8))),
        "smoothing": jnp.log(0.3),
    }
    kernels = np.asarray(experts.filters(x))
    np.testing.assert_allclose(kernels.sum((1, 2)), 0, atol=1e-12)
    found = [
        np.sqrt(correlate2d(one, kernel, "valid") ** 2 + 0.3**2).sum() * np.exp(weight)
        for one in y
        for kernel, weight in zip(kernels, x["weights"], strict=True)
    ]
    np.testing.assert_allclose(experts(x, jnp.asarray(y)), sum(found))


@pytest.mark.parametrize("size", [2, 5])
def test_cosines_are_orthonormal_and_of_mean_zero(size):
    basis = np.asarray(cosines(size))
    np.testing.assert_allclose(basis @ basis.T, np.eye(size**2 - 1), atol=1e-12)
    np.testing.assert_allclose(basis.sum(1), 0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", [TotalVariation(), FieldsOfExperts()], ids=["tv", "foe"])
def test_the_bound_on_the_hypergradient_holds_and_held_out_pictures_gain(regularizer):
    clean = jnp.asarray(shapes(20))
    noisy = clean + jnp.asarray(0.1 * DRAW.normal(size=clean.shape))
    train, batch = clean[:8], Batch(clean[:8], noisy[:8])
    losses, n = problem(regularizer), train.size
    method = MAID(mu=1 / n, upper_L=1 / n, upper_cross=0.0)

    @jax.jit
    def accurate(x):
        """The hypergradient, 1e-10 accurate."""
        y = bl.lower.NewtonCG(tol=1e-14).solve(losses, x, batch.lower, batch.lower).y
        return bl.hypergrad.implicit(losses, x, y, batch, linear=bl.linear.CG(2000, tol=1e-14)).grad

    step = jax.jit(lambda state: method.step(losses, state, batch))
    state = method.init(losses, regularizer.start(), batch.lower)
    uppers = []
    for _ in range(6):
        exact = accurate(state.x)
        state, info = step(state)
        error = bl.trees.norm(bl.trees.sub(state.z, exact))
        assert info["accepted"]
        assert error <= info["bound"] <= 0.5 * info["hypergrad_norm"] * (1 + 1e-9)
        uppers.append(float(info["upper"]))
    assert uppers[-1] < 0.9 * uppers[0]

    result = learn(train, batch.lower, regularizer, steps=12, progress=False)
    found = denoise(result.x, noisy[8:], regularizer)
    gain = psnr(clean[8:], found) - psnr(clean[8:], noisy[8:])
    assert gain.mean() > 5
    assert gain.min() > 2


@pytest.mark.slow
def test_denoising_reaches_its_accuracy():
    """Against a solve that is far more accurate."""
    noisy = jnp.asarray(shapes(2) + 0.1 * DRAW.normal(size=(2, 16, 16)))
    rough, fine = (
        denoise(TotalVariation().start(), noisy, TotalVariation(), accuracy=accuracy)
        for accuracy in (1e-2, 1e-9)
    )
    assert 0 < np.sqrt(np.mean((rough - fine) ** 2)) <= 1e-2


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"noisy \(2, 4, 5\); both must be the same"):
        learn(jnp.zeros((2, 4, 4)), jnp.zeros((2, 4, 5)), TotalVariation())


# --- files ------------------------------------------------------------------------------------


def save(folder, names, shape=(20, 30, 3)):
    folder.mkdir(exist_ok=True)
    for name in names:
        write_picture(folder / name, DRAW.uniform(size=shape))


def test_pictures_are_read_as_they_were_written(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pixels = DRAW.integers(0, 256, (5, 4, 3)) / 255
    write_picture(tmp_path / "b.png", pixels)
    write_picture(tmp_path / "c.bmp", pixels[..., :1])
    deep = DRAW.integers(0, 65536, (5, 4)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    first, second, third = read_pictures(tmp_path)
    np.testing.assert_allclose(first.gray, deep / 65535)
    np.testing.assert_array_equal(second.pixels, pixels)
    np.testing.assert_array_equal(third.gray, pixels[..., 0])
    np.testing.assert_allclose(second.gray, pixels @ [0.299, 0.587, 0.114])


def test_crops_are_disjoint_and_partners_match(tmp_path):
    pytest.importorskip("PIL")
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    save(clean, ["a.png", "b.png"])
    noisy.mkdir()
    for picture in read_pictures(clean):
        write_picture(noisy / picture.file.name, picture.pixels / 2)
    options = Denoise(folder=clean, noisy=noisy, crop=8, crops=5, held_out=7)
    task = crops.read(options)
    assert task.train.clean.shape == (5, 8, 8)
    everything = np.concatenate([task.train.clean, task.held_out.clean])
    assert len(np.unique(everything, axis=0)) == 12  # of random pixels: no crop twice
    np.testing.assert_allclose(task.train.noisy, task.train.clean / 2, atol=1e-2)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["nowhere"], "nowhere does not exist; a folder of pictures is needed."),
        (["empty"], "empty holds no picture"),
        (["damaged"], "damaged/a.png cannot be read as a picture"),
        (["clean", "--crop", "64"], "clean/a.png has 30 x 20 pixels; crops of 64 do not fit."),
        (["clean", "--crop", "8"], "clean holds 6 crops of 8 pixels that do not overlap; 16 to"),
        (["clean", "--noisy", "other"], "other has no a.png; a noisy version of each"),
        (["clean", "--noisy", "small"], "small/a.png has 29 x 20 pixels; 30 x 20 are needed."),
        (["clean", "--out", "nowhere/r.html"], "there is no folder nowhere"),
        (["clean", "--apply", "clean", "--into", "clean"], "--into is the folder of --apply"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(tmp_path, monkeypatch, typed, told):
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "clean", ["a.png"])
    save(tmp_path / "other", ["b.png"])
    save(tmp_path / "small", ["a.png"], (20, 29, 3))
    for name, content in (("empty", None), ("damaged", b"\x89PNG\r\n\x1a\n" + 40 * b"x")):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "a.png").write_bytes(content)
    found = run("denoise", *typed)
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.startswith("bilevel denoise: ")
    assert "Traceback" not in found.output


def test_too_many_pixels_are_refused_unread(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    save(tmp_path, ["a.png", "b.png"])
    monkeypatch.setattr("bilevel.files.pictures.MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"b.png has 30 x 20 pixels, and 400 are left"):
        read_pictures(tmp_path)


@pytest.mark.slow
def test_the_command_writes_a_report_and_denoised_pictures(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    for folder in ("clean", "noisy"):
        (tmp_path / folder).mkdir()
    write_picture(tmp_path / "clean" / "a.png", shapes(8).reshape(-1, 16, 1))
    write_picture(tmp_path / "noisy" / "b.jpg", DRAW.uniform(size=(12, 13, 3)))
    sizes = ("--crop", "16", "--crops", "4", "--held-out", "4", "--steps", "2")
    found = run("denoise", "clean", *sizes, "--apply", "noisy")
    assert found.exit_code == 0, found.output
    assert "1 pictures denoised by" in found.output
    assert "Before and after" in (tmp_path / "bilevel-denoise.html").read_text("utf-8")
    (written,) = read_pictures(tmp_path / "denoised")
    assert written.pixels.shape == (12, 13, 3)
