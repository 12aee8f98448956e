"""
=========================
Scoring on a Dask cluster
=========================

Within ``joblib.parallel_config(backend="dask")``, a detector sends shards of 128 images to the
workers of a Dask cluster. This example uses two processes on one machine; a real cluster may have
two hundred machines. Workers get paths and read the files themselves. If a worker dies, another one
repeats its shard, and the scores equal those of a single process to the last bit.

The example needs ``pip install "skanomaly-vit[dask,demo]"``.

The images are solar cells of the ELPV dataset [1]_.

.. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
   Electroluminescence Images", Machine Vision and Applications 32, 2021. The images are
   licensed CC BY-NC-SA 4.0.
"""

# Authors: The skanomaly-vit developers
# SPDX-License-Identifier: BSD-3-Clause

# %%
# A detector
# ----------
# We fit it in this process, because 100 functional cells are few. The cluster would share the work
# of a larger fit too.

import os
import signal
from threading import Thread
from time import sleep, time

import joblib
import matplotlib.pyplot as plt
import numpy as np
import torch
from distributed import Client, SubprocessCluster, get_task_stream
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv

# Workers use as many threads as this process, because the rounding of sums depends on that number.
# Two workers on two cores get one thread each.
torch.set_num_threads(1)

N_TRAIN, N_FUNCTIONAL, N_DEFECTIVE = 100, 500, 140
SECONDS = 3  # from the first shard of a worker to the kill

cells = load_elpv()
rng = np.random.default_rng(0)
functional, defective = (
    rng.permutation(np.flatnonzero(cells.defect_probability == p)) for p in (0, 1)
)
lot = rng.permutation(
    np.concatenate([functional[N_TRAIN:][:N_FUNCTIONAL], defective[:N_DEFECTIVE]])
)
paths = cells.images[lot]
detector = TransformalyDetector(contamination=0.05, random_state=0)
detector.fit(cells.images[functional[:N_TRAIN]])

# %%
# Two workers and a kill
# ----------------------
# Each worker is a process with one thread. A thread waits for the first worker that has finished a
# shard, and kills it during its second shard, by the signal that no process can catch. Dask starts
# another worker in its place, and records the times of all work.


def kill_a_worker():
    """Kill the first worker that has finished a shard."""
    while not (done := client.get_task_stream()):
        sleep(0.2)
    sleep(SECONDS)
    address = done[0]["worker"]
    process = client.run(os.getpid, workers=[address])[address]
    killed.append((address, time()))
    os.kill(process, signal.SIGKILL)


killed = []
with (
    SubprocessCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    Client(cluster) as client,
):
    client.wait_for_workers(2)
    killer = Thread(target=kill_a_worker)
    with get_task_stream(client) as stream, joblib.parallel_config(backend="dask"):
        killer.start()
        start = time()
        scores = detector.score_samples(paths)
        end = time()
    killer.join()

flagged = scores < detector.offset_
is_defective = cells.defect_probability[lot] == 1
print(f"{len(paths)} images in {end - start:.0f} s, a killed worker and its successor included")
print(f"flagged: {flagged[is_defective].mean():.0%} of the defective cells, ", end="")
print(f"{flagged[~is_defective].mean():.0%} of the functional ones")

# %%
# The same scores to the last bit
# -------------------------------
# Scores do not depend on the number of workers, or on their fate. We score some images of different
# shards in this process and compare:

some = np.arange(0, len(paths), 80)
print("same to the bit:", np.array_equal(detector.score_samples(paths[some]), scores[some]))

# %%
# The picture
# -----------
# The upper plot shows the work of each worker over time. It begins with the seconds in which
# workers import PyTorch. A bar is a shard of 128 images. The shard of the killed worker has no bar:
# it was lost, and another worker repeated it. Below are the most abnormal cells; defective ones
# have a vermilion frame, functional ones a blue frame.

COLORS = ["#0072B2", "#D55E00", "#009E73"]  # safe for colour-blind readers
N_COLUMNS = 9

done = sorted(
    (step["start"] - start, step["stop"] - start, task["worker"])
    for task in stream.data
    for step in task["startstops"]
    if step["action"] == "compute"
)
workers = list(dict.fromkeys(worker for _, _, worker in done))

figure = plt.figure(figsize=(12, 6.2), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
ax = top.subplots()
for begun, ended, worker in done:
    row = workers.index(worker)
    color = COLORS[row % len(COLORS)]
    ax.barh(row, ended - begun, left=begun, color=color, edgecolor="white", linewidth=2)
for address, moment in killed:
    row = workers.index(address)
    ax.plot(moment - start, row, marker="X", markersize=14, color="black")
    ax.annotate("killed", (moment - start, row), (12, -4), textcoords="offset points", fontsize=11)
ax.set(xlabel="seconds", xlim=(0, end - start), yticks=range(len(workers)))
ax.set_yticklabels([f"worker {i + 1}" for i in range(len(workers))])
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
ax.set_title(
    f"{len(paths)} cells, two workers at a time", loc="left", fontweight="bold", fontsize=13
)

bottom.suptitle("The most abnormal of them", x=0.01, ha="left", fontweight="bold", fontsize=13)
for ax, cell in zip(bottom.subplots(2, N_COLUMNS).flat, np.argsort(scores), strict=False):
    ax.imshow(Image.open(paths[cell]), cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color="#D55E00" if is_defective[cell] else "#0072B2", linewidth=3)
figure.savefig("dask_scoring.png", dpi=100)
