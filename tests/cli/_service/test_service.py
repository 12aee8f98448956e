"""The service over HTTP: verdicts, refusals, a bounded queue, batches, and its end."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import httpx
import matplotlib
import numpy as np
import pytest
from backbones import family
from images import blobs
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import Brightness, png, send, serving, wait_until
from sklearn.base import clone

import skanomaly_vit
from skanomaly_vit.cli._service.batches import BatchWorker, FullError, Job, StoppingError
from skanomaly_vit.cli._service.pictures import color
from skanomaly_vit.cli._service.scorers import scorer_of
from skanomaly_vit.onnx import OnnxDetector, export_onnx

GRAY = np.full((8, 8, 3), 120, np.uint8)
PAGE = Path(skanomaly_vit.__file__).parent / "cli/_service/page"


@pytest.fixture(scope="module", params=["detector", "exported"])
def client(line, request):
    with serving(scorer_of(getattr(line, request.param)), max_pixels=4000) as client:
        client.line = line
        yield client


@pytest.fixture
def brightness():
    return Brightness()


# What a model says


def test_scores_are_those_of_the_detector(client):
    line = client.line
    images = [*line.good, *line.odd]
    answers = [send(client, image).json() for image in images]
    scores = line.detector.score_samples(images)
    # ONNX Runtime and torch round otherwise, and a score may be close to 0.
    np.testing.assert_allclose([a["score"] for a in answers], scores, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose([a["p_value"] for a in answers], line.detector.p_values(images))
    assert [a["flag"] for a in answers] == list(line.detector.predict(images) == -1)
    for answer in answers:
        assert answer["threshold"] == line.detector.offset_
        assert answer["decision"] == pytest.approx(answer["score"] - answer["threshold"])
        assert answer["remarks"] == []
    assert {a["flag"] for a in answers} == {True, False}


ROI = np.arange(32) < np.full((32, 1), 26)


@pytest.fixture(scope="module", params=["detector", "graph"])
def framed(line, request, tmp_path_factory):
    """A detector with a region and tiles, and its scorer or that of its graph."""
    backbone = family("class token", patch_size=8)
    detector = clone(line.detector).set_params(backbone=backbone, roi=ROI, tiles=(2, 2))
    detector.fit(blobs(np.random.default_rng(0), 24))
    if request.param == "detector":
        return detector, scorer_of(detector)
    path = export_onnx(detector, tmp_path_factory.mktemp("framed") / "framed.onnx")
    return detector, scorer_of(OnnxDetector.load(path))


def test_a_service_frames_images_as_its_detector_does(line, framed):
    detector, scorer = framed
    images = [*line.good, *line.odd]
    with serving(scorer) as client:
        answers = [send(client, image).json() for image in images]
        picture = send(client, line.odd[0], "/map")
    scores = detector.score_samples(images)
    np.testing.assert_allclose([a["score"] for a in answers], scores, rtol=1e-4)
    np.testing.assert_allclose([a["p_value"] for a in answers], detector.p_values(images))
    assert np.asarray(Image.open(io.BytesIO(picture.content))).shape == (32, 32, 3)


def test_an_image_that_the_region_does_not_fit_spoils_no_batch(line, framed):
    images = [line.good[0], line.good[0][:20], line.good[1]]
    texts = [base64.b64encode(png(image)).decode() for image in images]
    with serving(framed[1]) as client:
        results = client.post("/score", json={"images": texts}).json()["results"]
        alone = send(client, images[1])
    assert ["score" in result for result in results] == [True, False, True]
    assert alone.status_code == 422
    assert "has 32 x 20 pixels, which the region of interest" in sentence(alone)


def test_several_images_come_in_one_request(client):
    images = [png(client.line.good[0]), b"no image", png(client.line.odd[0])]
    texts = [base64.b64encode(image).decode() for image in images]
    answer = client.post("/score", json={"images": texts})
    assert answer.status_code == 200
    good, broken, odd = answer.json()["results"]
    assert good["score"] == pytest.approx(send(client, images[0]).json()["score"], rel=1e-4)
    assert broken == {"error": "8 bytes that are no image of a known format"}
    assert odd["flag"]


def test_a_map_is_a_picture_of_the_image(client):
    answer = send(client, client.line.odd[0], "/map")
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (32, 32, 3)
    plain = np.asarray(Image.open(io.BytesIO(send(client, client.line.good[0], "/map").content)))
    # The map's colors: noise is far from all normal patches.
    assert np.ptp(picture.astype(int), axis=2).mean() > np.ptp(plain.astype(int), axis=2).mean()


def test_what_is_doubtful_in_an_image_is_said(client):
    stream = io.BytesIO()
    pages = [Image.fromarray(image) for image in client.line.good[:2]]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    (remark,) = send(client, stream.getvalue(), kind="image/tiff").json()["remarks"]
    assert "several pages" in remark


def test_health_tells_what_is_served(client):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["model_sha256"] == "0" * 64
    assert health["threshold"] == client.line.detector.offset_
    assert (health["has_maps"], health["max_pixels"]) == (True, 4000)


def test_colors_are_those_of_the_displays():
    shares = np.linspace(0, 1, 200)[None]
    expected = 255 * matplotlib.colormaps["autumn_r"](shares)[..., :3]
    assert np.abs(color(shares) - expected).max() < 8


# What is refused

HALF = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))[:900]

REFUSED = {
    "no image": (b"no image", "image/png", 422, "no image of a known format"),
    "half an image": (HALF, "image/png", 422, "cannot be read"),
    "no bytes": (b"", "image/png", 422, "no bytes"),
    "many pixels": (png(np.zeros((80, 80, 3), np.uint8)), "image/png", 422, "than the 4000 that"),
    "another type": (png(GRAY), "text/plain", 415, "content type"),
    "no type": (png(GRAY), "", 415, "content type"),
    "no JSON": (b"{", "application/json", 422, "JSON"),
    "JSON of another form": (b'{"images": "abc"}', "application/json", 422, "JSON"),
    "no base64": (b'{"images": ["!"]}', "application/json", 422, "base64"),
    "nested JSON": (b"[" * 100_000, "application/json", 422, "JSON"),
    "no images": (b'{"images": []}', "application/json", 422, "empty"),
    "many images": (json.dumps({"images": [""] * 65}).encode(), "application/json", 413, "64"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps", 422, "."),
}


def sentence(answer):
    """The error of an answer: one sentence, which tells nothing of the server's files."""
    (text,) = answer.json().values()
    assert text[0].isupper()
    assert text.endswith(".")
    assert "\n" not in text
    assert not re.search(r"/(home|opt|usr|tmp|var|lib)\b|\.py\b|0x[0-9a-f]{6}|max_pixels", text)
    return text


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_clear_sentence(client, case):
    body, kind, status, said = REFUSED[case]
    answer = send(client, body, kind=kind)
    assert answer.status_code == status
    assert said in sentence(answer)
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/etc/passwd", 404), ("GET", "/..%2f..%2fetc/passwd", 404), ("GET", "/score", 405),
    ("DELETE", "/map", 405),
])  # fmt: skip
def test_other_addresses_are_refused(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    sentence(answer)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_request_is_refused(brightness, chunked):
    # Larger than what sockets hold: this client sends it all before it reads the answer.
    body = b"x" * 2**24
    with serving(brightness, max_body=1000) as client:
        connection = HTTPConnection(client.base_url.host, client.base_url.port)
        content = iter([body, body]) if chunked else body
        connection.request(
            "POST", "/score", content, {"content-type": "image/png"}, encode_chunked=chunked
        )
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"1000 bytes" in answer.read()
        connection.close()
        assert send(client, GRAY).status_code == 200


def test_half_a_request_is_given_up(brightness):
    with serving(brightness, body_timeout=0.1) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(
                b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
                b"Content-Length: 100\r\n\r\nhalf"
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert client.service.worker.taken == 0


def test_a_model_without_maps_says_so(brightness):
    with serving(brightness) as client:
        answer = send(client, GRAY, "/map")
    assert answer.status_code == 404
    assert sentence(answer) == "This model has no anomaly maps."


# A queue, and batches


def test_a_full_service_says_when_to_come_again(brightness):
    brightness.gate.clear()
    with serving(brightness, places=2) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(send, client, GRAY) for _ in range(2)]
        wait_until(lambda: client.service.worker.taken == 2)
        refused = send(client, b"x" * 2**24)  # larger than what sockets hold
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        sentence(refused)
        brightness.gate.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert send(client, GRAY).status_code == 200


def test_images_of_a_request_need_a_place_each(brightness):
    brightness.gate.clear()
    three = {"images": [base64.b64encode(png(GRAY)).decode()] * 3}
    with serving(brightness, places=3) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send, client, GRAY)
        wait_until(lambda: client.service.worker.taken == 1)
        assert client.post("/score", json=three).status_code == 503
        brightness.gate.set()
        assert waiting.result().status_code == 200
        assert len(client.post("/score", json=three).json()["results"]) == 3


def test_requests_that_wait_share_a_pass(brightness):
    brightness.gate.clear()
    with serving(brightness, batch_size=4, max_wait=0) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(send, client, GRAY)
        wait_until(lambda: brightness.batches == [1])
        images = [np.full_like(GRAY, 30 * index) for index in range(6)]
        others = [pool.submit(send, client, image) for image in images]
        wait_until(lambda: len(client.service.worker._queue) == 6)
        brightness.gate.set()
        assert first.result().json()["score"] == 120
        assert [each.result().json()["score"] for each in others] == [0, 30, 60, 90, 120, 150]
    assert brightness.batches == [1, 4, 2]


def worker(process=lambda jobs: None, **options):
    settings = {"places": 9, "batch_size": 4, "batch_pixels": None, "max_wait": 0}
    return BatchWorker(process, **settings | options)


@pytest.mark.parametrize(("pixels", "sizes"), [([5, 5, 5], [2, 1]), ([20, 1, 9, 1], [1, 2, 1])])
def test_a_batch_has_a_limit_of_pixels(pixels, sizes):
    found = []
    one = worker(lambda jobs: found.append(len(jobs)), batch_pixels=10)
    one.submit([Job(b"", n, False) for n in pixels])
    one.start()
    one.close()
    assert found == sizes


def test_nobody_works_for_a_client_that_has_gone():
    found = []
    one = worker(found.extend)
    jobs = [Job(b"", 1, False) for _ in range(3)]
    one.submit(jobs)
    jobs[1].result.cancel()
    one.start()
    one.close()
    assert found == [jobs[0], jobs[2]]


def test_a_worker_that_stops_finishes_its_queue():
    gate, begun, found = threading.Event(), threading.Event(), []

    def process(jobs):
        begun.set()
        gate.wait()
        found.extend(jobs)

    one = worker(process, batch_size=1)
    jobs = [Job(b"", 1, False) for _ in range(3)]
    one.submit(jobs)
    one.start()
    begun.wait()
    closing = threading.Thread(target=one.close)
    closing.start()
    wait_until(lambda: not one.is_working)
    gate.set()
    closing.join()
    assert found == jobs


def test_a_worker_that_stops_takes_nothing():
    one = worker(places=1)
    one.start()
    with one.reserve(), pytest.raises(FullError), one.reserve():
        pass
    one.close()
    with pytest.raises(StoppingError), one.reserve():
        pass
    with pytest.raises(StoppingError):
        one.submit([Job(b"", 1, False)])
    assert not one.is_working


def test_a_batch_that_fails_costs_its_images_alone(brightness, caplog):
    brightness.error = RuntimeError("no kernel in /opt/lib/engine.py")
    with serving(brightness) as client:
        with caplog.at_level(logging.ERROR):
            answer = send(client, GRAY)
        assert answer.status_code == 500
        assert "log" in sentence(answer)
        assert "no kernel" in caplog.text
        brightness.error = None
        assert send(client, GRAY).status_code == 200


def test_counters_are_for_prometheus(brightness):
    with serving(brightness) as client:
        for image in (GRAY, GRAY // 2, b"no image"):
            send(client, image)
        client.get("/nowhere")
        text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in text_string_to_metric_families(text.text)
        for sample in metric.samples
    }
    assert found["skanomaly_requests_total", "/score", "200"] == 2
    assert found["skanomaly_requests_total", "/score", "422"] == 1
    assert found["skanomaly_requests_total", "other", "404"] == 1
    assert found["skanomaly_images_total", "anomaly"] == 1
    assert found["skanomaly_images_total", "normal"] == 1
    assert found["skanomaly_batch_images_sum",] == 2
    assert found["skanomaly_images_in_service",] == 0


# Its end


def test_a_stop_answers_what_was_taken(brightness):
    brightness.gate.clear()
    with serving(brightness, batch_size=1) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(send, client, GRAY) for _ in range(3)]
        wait_until(lambda: client.service.worker.taken == 3)
        client.server.should_exit = True
        brightness.gate.set()
        client.thread.join()
        assert [each.result().status_code for each in waiting] == [200] * 3
        assert not client.service.worker.is_working
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


COMMAND = [sys.executable, "-W", "error", "-m", "skanomaly_vit"]

#: Runs a command on a machine that has what an ONNX file needs, and nothing else of weight.
WITHOUT_TORCH = """
import sys
for name in ("torch", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "huggingface_hub"):
    sys.modules[name] = None
from skanomaly_vit.cli import main
main(sys.argv[1:])
"""


def start(*args):
    """A process that serves, and its address."""
    done = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, "serve", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = done.stderr.readline()
    return done, re.search(r"http://\S+", said).group()


def test_an_onnx_file_is_served_without_torch_until_sigterm(line):
    # The batch waits, so that the signal comes while the image is queued.
    process, address = start(line.path, "--port", 0, "--batch-wait", 1500)
    with process, httpx.Client(base_url=address, timeout=120) as client:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(send, client, line.odd[0])
            wait_until(lambda: "in_service 1.0" in httpx.get(f"{address}/metrics").text)
            process.send_signal(signal.SIGTERM)
            answer = waiting.result()
        assert answer.json()["flag"]
        rest = process.stderr.read()
    assert process.returncode == 0, rest
    assert "every image that was taken has its answer" in rest


# The page


def test_the_page_obeys_a_strict_policy(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src=)", page.text)
    for address in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        found = client.get(f"/{address}")
        assert found.status_code == 200
        assert found.headers["x-content-type-options"] == "nosniff"
    assert {path.name for path in PAGE.iterdir()} == {"page.html", "page.css", "page.js"}


def test_an_image_is_judged_on_the_page(client):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    line, complaints = client.line, []
    files = {"odd.png": line.odd[0], "bad.png": None, "good.png": line.good[0]}
    verdicts = {"odd.png": "Anomaly", "good.png": "Normal"}
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        tab.on("pageerror", lambda error: complaints.append(error))
        tab.goto(str(client.base_url))
        status = playwright.expect(tab.locator("#status"))
        for name, image in files.items():
            content = b"no image" if image is None else png(image)
            file = {"name": name, "mimeType": "image/png", "buffer": content}
            tab.set_input_files("#file", files=[file])
            if image is None:
                status.to_contain_text("no image of a known format")
                assert not tab.is_visible("#result")
                continue
            status.to_have_text(name)
            playwright.expect(tab.locator("#verdict")).to_have_text(verdicts[name])
            playwright.expect(tab.locator("#map")).to_have_js_property("naturalWidth", 32)
        browser.close()
    assert complaints == []
