"""What `translution bench kernels` counted before the operator had kernels of its own.

The pass of commit ea6e8b0, which cut chunks of 64 MiB and multiplied them by grouped products where torch had
a kernel for them and by a loop elsewhere, counted by models/ops/count.py on the meta device: the same layer,
dtypes and cards. The code as it was in commit 9938c57 was run, which moved that pass to other files.
"""

from __future__ import annotations

from typing import NamedTuple


class Then(NamedTuple):
    """One layer: launches, bytes through memory, and milliseconds by card."""

    kernels_forward: int
    kernels_backward: int
    bytes: float
    milliseconds: dict[str, float]


# shape, mixer, C, batch → where torch had grouped products, and where it had none; with shared entries there
# were neither, but the loop over bands of commit 92c953c, now `mixer.kernel=loop`
_COUNTED: dict[tuple[str, str, int, int], tuple[Then, ...]] = {
    ("14x14+cls", "full", 192, 32): (
        Then(5_737, 14_269, 70.96e9, {"h100": 45.09, "h200": 42.09, "b200": 40.02}),
        Then(7_765, 20_929, 62.1e9, {"a100": 70.03}),
    ),
    ("14x14+cls", "full", 192, 128): (
        Then(31_529, 70_984, 216.3e9, {"h100": 216.4, "h200": 209.1, "b200": 205.3}),
        Then(23_291, 62_787, 246.7e9, {"a100": 237.2}),
    ),
    ("14x14+cls", "full", 192, 256): (
        Then(66_790, 150_382, 402.7e9, {"h100": 454.3, "h200": 441.3, "b200": 435.2}),
        Then(44_911, 121_449, 493.8e9, {"a100": 472.1}),
    ),
    ("14x14+cls", "full", 384, 32): (
        Then(16_680, 35_567, 136e9, {"h100": 112.5, "h200": 107.3, "b200": 104.6}),
        Then(14_164, 38_221, 141.5e9, {"a100": 139.8}),
    ),
    ("14x14+cls", "full", 384, 128): (
        Then(68_260, 153_371, 465.1e9, {"h100": 465, "h200": 451.2, "b200": 443.8}),
        Then(45_212, 121_925, 545.5e9, {"a100": 481.3}),
    ),
    ("14x14+cls", "full", 384, 256): (
        Then(134_689, 306_592, 908.5e9, {"h100": 922.2, "h200": 897.6, "b200": 883.6}),
        Then(85_387, 230_195, 1080e9, {"a100": 924.4}),
    ),
    ("14x14+cls", "full", 768, 32): (
        Then(31_529, 70_984, 382.3e9, {"h100": 239.5, "h200": 224.6, "b200": 207.3}),
        Then(23_291, 62_787, 373e9, {"a100": 272}),
    ),
    ("14x14+cls", "full", 768, 128): (
        Then(134_689, 306_592, 1320e9, {"h100": 956.5, "h200": 924.4, "b200": 886.1}),
        Then(85_387, 230_195, 1461e9, {"a100": 1057}),
    ),
    ("14x14+cls", "full", 768, 256): (
        Then(276_534, 630_553, 2577e9, {"h100": 1935, "h200": 1882, "b200": 1819}),
        Then(169_404, 456_741, 2927e9, {"a100": 2116}),
    ),
    ("7x7", "full", 192, 256): (
        Then(3_507, 7_884, 27.77e9, {"h100": 24.53, "h200": 23.43, "b200": 22.89}),
        Then(3_167, 8_955, 31.05e9, {"a100": 32.59}),
    ),
    ("1024 causal", "full", 768, 8): (
        Then(77_877, 128_154, 1505e9, {"h100": 623.4, "h200": 526.2, "b200": 428.1}),
        Then(77_877, 143_481, 1182e9, {"a100": 867.9}),
    ),
    ("14x14+cls", "alpha-8", 192, 32): (
        Then(8_512, 19_449, 57.36e9, {"h100": 60.62, "h200": 57.8, "b200": 55.93}),
        Then(10_540, 26_109, 56.6e9, {"a100": 87.08}),
    ),
    ("14x14+cls", "alpha-8", 192, 128): (
        Then(31_176, 62_613, 229.9e9, {"h100": 209.7, "h200": 196.5, "b200": 189.2}),
        Then(40_458, 99_054, 226.9e9, {"a100": 340.2}),
    ),
    ("14x14+cls", "alpha-8", 192, 256): (
        Then(59_509, 122_796, 458.8e9, {"h100": 409.3, "h200": 382.7, "b200": 367.9}),
        Then(73_705, 182_574, 452.9e9, {"a100": 635.6}),
    ),
    ("14x14+cls", "alpha-8", 384, 32): (
        Then(17_014, 36_681, 115.3e9, {"h100": 116.9, "h200": 111.2, "b200": 107.9}),
        Then(21_070, 52_194, 113.5e9, {"a100": 174.2}),
    ),
    ("14x14+cls", "alpha-8", 384, 128): (
        Then(59_509, 122_796, 460.6e9, {"h100": 409.3, "h200": 382.8, "b200": 368}),
        Then(73_705, 182_574, 453.8e9, {"a100": 635.7}),
    ),
    ("14x14+cls", "alpha-8", 384, 256): (
        Then(116_166, 234_843, 921.9e9, {"h100": 794.7, "h200": 739.6, "b200": 709.5}),
        Then(145_728, 359_814, 908.3e9, {"a100": 1263}),
    ),
    ("14x14+cls", "alpha-8", 768, 32): (
        Then(34_012, 71_127, 234.7e9, {"h100": 230.3, "h200": 218, "b200": 211.4}),
        Then(42_124, 104_346, 229.1e9, {"a100": 349.5}),
    ),
    ("14x14+cls", "alpha-8", 768, 128): (
        Then(122_656, 247_803, 937.2e9, {"h100": 828.9, "h200": 776.8, "b200": 746.5}),
        Then(154_834, 383_244, 916.1e9, {"a100": 1320}),
    ),
    ("14x14+cls", "alpha-8", 768, 256): (
        Then(243_651, 493_188, 1873e9, {"h100": 1650, "h200": 1546, "b200": 1485}),
        Then(303_633, 750_954, 1832e9, {"a100": 2597}),
    ),
    ("7x7", "alpha-8", 192, 256): (
        Then(3_826, 9_048, 28.88e9, {"h100": 28.19, "h200": 26.72, "b200": 25.9}),
        Then(4_690, 12_432, 28.51e9, {"a100": 41.24}),
    ),
    ("1024 causal", "alpha-8", 768, 8): (
        Then(225_480, 359_967, 927.2e9, {"h100": 1210, "h200": 1178, "b200": 1171}),
        Then(225_480, 393_690, 910e9, {"a100": 1381}),
    ),
    ("1024 causal log", "full", 768, 8): (
        Then(1_179, 1_455, 35.22e9, {"h100": 14.81, "h200": 11.9, "b200": 8.475, "a100": 24.01}),
    ),
    ("1024 causal clip(3)", "full", 768, 8): (
        Then(734, 757, 18.68e9, {"h100": 7.712, "h200": 6.086, "b200": 4.309, "a100": 12.41}),
    ),
    ("8192 causal log", "full", 768, 1): (
        Then(6_575, 10_474, 148.8e9, {"h100": 69.8, "h200": 57.55, "b200": 45.98, "a100": 101.1}),
    ),
    ("14x14+cls log", "full", 768, 32): (
        Then(5_728, 7_015, 72.37e9, {"h100": 39.33, "h200": 35.38, "b200": 29.21, "a100": 59.24}),
    ),
    ("14x14+cls clip(2)", "full", 768, 128): (
        Then(1_530, 1_721, 122.1e9, {"h100": 48.16, "h200": 38.25, "b200": 23.48, "a100": 88.09}),
    ),
    ("28x28+cls log", "full", 768, 8): (
        Then(30_186, 31_935, 143.9e9, {"h100": 145.6, "h200": 140.3, "b200": 130.7, "a100": 174.8}),
    ),
    ("1024 causal log", "alpha-8", 768, 8): (
        Then(1_711, 2_460, 38.81e9, {"h100": 17.45, "h200": 14.1, "b200": 11.13, "a100": 25.2}),
    ),
    ("14x14+cls log", "alpha-8", 768, 32): (
        Then(8_227, 10_803, 67.44e9, {"h100": 47.12, "h200": 43.07, "b200": 39.92, "a100": 57.77}),
    ),
}


def before(shape: str, mixer: str, c: int, batch: int, card: str) -> Then | None:
    """The count of one layer for one card; None if it was not counted."""
    counts = _COUNTED.get((shape, mixer, c, batch), ())
    return next((then for then in counts if card in then.milliseconds), None)
