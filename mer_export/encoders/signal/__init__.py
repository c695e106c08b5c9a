"""Features of a sound by signal processing: eGeMAPS through opensmile, log-mel, MFCC. No network."""

from mer_export.encoders.config import contract, task
from mer_export.encoders.signal.config import KINDS, SignalConfig
from mer_export.registry import System

SYSTEM = System(
    name="signal",
    title="Signal features: eGeMAPS, log-mel, MFCC",
    paper="Eyben et al., IEEE TAFFC 7(2), 2016; Davis & Mermelstein, IEEE TASSP 28(4), 1980",
    source="audeering/opensmile-python",
    config=SignalConfig,
    variants=KINDS,
    variant_of=lambda config: config.signal,
    contract=contract,
    task=task,
    compute="mer_export.encoders.signal.compute:features",
)
