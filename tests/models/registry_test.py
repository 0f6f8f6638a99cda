"""Parameters and multiply-accumulates of every registered model, and their names."""

import pytest

from deit_jax import models

# name -> (parameters, multiply-accumulates of one image). Published: parameters of DeiT and
# DeiT-III exactly, multiply-accumulates to the digits that the papers print.
SIZES = {
    "deit3_base_patch16_224": (86_585_320, 17_563_828_224),
    "deit3_base_patch16_384": (86_877_160, 55_484_350_464),
    "deit3_huge_patch14_224": (632_126_440, 167_295_109_120),
    "deit3_large_patch16_224": (304_374_760, 61_554_712_576),
    "deit3_large_patch16_384": (304_763_880, 191_066_300_416),
    "deit3_medium_patch16_224": (38_849_512, 7_990_968_320),
    "deit3_small_patch16_224": (22_059_496, 4_598_882_304),
    "deit3_small_patch16_384": (22_205_416, 15_490_351_104),
    "deit_base_distilled_patch16_224": (87_338_192, 17_656_811_520),
    "deit_base_distilled_patch16_384": (87_630_032, 55_591_342_080),
    "deit_base_patch16_224": (86_567_656, 17_563_828_224),
    "deit_base_patch16_384": (86_859_496, 55_484_350_464),
    "deit_small_distilled_patch16_224": (22_436_432, 4_624_140_288),
    "deit_small_patch16_224": (22_050_664, 4_598_882_304),
    "deit_tiny_distilled_patch16_224": (5_910_800, 1_261_003_776),
    "deit_tiny_patch16_224": (5_717_416, 1_253_683_200),
    "regnety_002": (3_162_996, 199_514_080),
    "regnety_004": (4_344_144, 401_842_848),
    "regnety_006": (6_055_160, 601_220_992),
    "regnety_008": (6_263_168, 797_176_832),
    "regnety_016": (11_202_430, 1_612_076_160),
    "regnety_032": (19_436_338, 3_176_482_752),
    "regnety_040": (20_646_656, 3_973_288_448),
    "regnety_064": (30_583_252, 6_355_204_992),
    "regnety_080": (39_180_068, 7_963_057_312),
    "regnety_120": (51_822_544, 12_092_376_576),
    "regnety_160": (83_590_140, 15_911_510_272),
    "regnety_320": (145_046_770, 32_279_552_832),
    "regnety_640": (281_378_786, 64_069_959_616),
    "regnety_1280": (644_812_894, 127_517_815_680),
    "regnety_2560": (1_282_601_138, 254_384_814_734),
    "regnety_008_tv": (6_432_512, 833_856_256),
    "regnety_040_sgn": (20_646_656, 3_973_288_448),
    "regnety_080_tv": (39_381_472, 8_473_070_592),
}


@pytest.mark.long
def test_sizes_of_all_registered_models():
    assert set(SIZES) == set(models.list_models()), "every registered model has its line in SIZES"
    found = {name: tuple(models.create_model(name).count()) for name in SIZES}
    assert found == SIZES


def test_macs_follow_from_the_architecture():
    """Patches, then per block qkv, projection, MLP and two attention products, then the heads."""
    model = models.create_model("deit_small_distilled_patch16_224", image_size=320)
    dim, patches = 384, 400
    tokens = patches + 2
    block = tokens * dim * dim * (3 + 1 + 8) + 2 * tokens * tokens * dim
    assert model.count().macs == patches * 768 * dim + 12 * block + 2 * dim * 1000


def test_list_models_takes_patterns():
    assert models.list_models("*_384") == sorted(name for name in SIZES if name.endswith("_384"))
