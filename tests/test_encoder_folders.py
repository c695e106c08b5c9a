"""Folders of encoders: config.json decides, a setting that contradicts it is named, what cannot be is refused."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Mer
from safetensors.torch import load_file, save_file
from small_facialmmt import SMALL, VARIANTS

from mer_export import registry
from mer_export.bundle import CONFIG, WEIGHTS
from mer_export.errors import InputError, UnsupportedError, UsageError
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder
from mer_export.layers.bert import fairseq
from mer_export.layers.bert.config import BertConfig, roberta
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.layers.bert.weights import renames
from mer_export.models.tab.weights import load_encoder
from mer_export.untrusted.yaml_files import read_yaml
from train.config import PRESETS, TrainConfig, load_preset, parse_config
from train.encoders import check_sources
from train.fit import fit
from train.recipe import recipe

SIZES = {
    "vocab_size": 120,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}
BERT = SIZES | {"model_type": "bert", "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
ROBERTA = SIZES | {"model_type": "roberta", "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
OURS = {"vocabulary": 120, "hidden": 12, "layers": 2, "heads": 3, "feed_forward": 20, "positions": 64}


def folder(path: Path, content: dict[str, Any], name: str = "config.json") -> Path:
    """An encoder folder with random weights."""
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(content))
    torch.manual_seed(0)
    bert = Bert(read_config(path))
    own = bert.state_dict()
    prefix = "roberta." if bert.config.first_position else "bert."
    save_file({prefix + a: own[o].clone() for a, o in renames(bert.config, "", "").items()}, path / "model.safetensors")
    return path


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bert": (BERT, {"first_position": 0, "segments": 2, "first_token": 101}),
    "bert without a type": ({k: v for k, v in BERT.items() if k != "model_type"}, {"first_position": 0}),
    "of the oldest kind": (SIZES | {"hidden_act": "gelu"}, {"epsilon": 1e-12, "segments": 2}),
    "one token type": (BERT | {"type_vocab_size": 1}, {"segments": 1}),
    "another epsilon": (BERT | {"layer_norm_eps": 1e-6}, {"epsilon": 1e-6}),
    "another dropout": (BERT | {"hidden_dropout_prob": 0.0}, {"dropout": 0.0, "attention_dropout": 0.1}),
    "gelu by its other name": (BERT | {"hidden_act": "gelu_python"}, {"heads": 3}),
    "empty entries": (BERT | {"position_embedding_type": None, "is_decoder": None}, {"heads": 3}),
    "electra of one width": (BERT | {"model_type": "electra", "embedding_size": 12}, {"first_position": 0}),
    "roberta": (ROBERTA, {"first_position": 2, "epsilon": 1e-5, "padding_token": 1, "last_token": 2}),
    "roberta by its class": (
        {k: v for k, v in ROBERTA.items() if k != "model_type"} | {"architectures": ["RobertaForMaskedLM"]},
        {"first_position": 2},
    ),
    "xlm-roberta": (ROBERTA | {"model_type": "xlm-roberta"}, {"first_position": 2, "unknown_token": 3}),
    "camembert": (
        ROBERTA | {"model_type": "camembert", "bos_token_id": 5, "eos_token_id": 6},
        {"first_token": 5, "last_token": 6, "first_position": 2},
    ),
    "padding at another id": (ROBERTA | {"pad_token_id": 0}, {"first_position": 1, "padding_token": 0}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_says_what_its_encoder_is_and_loads(form: str, tmp_path: Path) -> None:
    content, wanted = FORMS[form]
    path = folder(tmp_path / "encoder", content)
    config = read_config(path)
    assert config.model_dump() | OURS | wanted == config.model_dump()
    load_pretrained(Bert(config), path)


def test_the_config_of_folders_before_2019_has_another_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "old", SIZES, "bert_config.json")
    assert read_config(path) == read_config(folder(tmp_path / "new", SIZES))
    load_pretrained(Bert(read_config(path)), path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "deberta": ({"model_type": "deberta-v2"}, "'deberta-v2'"),
    "modernbert": ({"model_type": "modernbert"}, "'modernbert'"),
    "mpnet": ({"model_type": "mpnet"}, "'mpnet'"),
    "distilbert": ({"model_type": "distilbert", "dim": 12}, "'distilbert'"),
    "albert": ({"model_type": "albert"}, "'albert'"),
    "an unknown class": ({"model_type": None, "architectures": ["NomicBertModel"]}, "'NomicBertModel'"),
    "gelu by tanh": ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
    "relu": ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    "a decoder": ({"is_decoder": True}, "is_decoder True"),
    "narrow embeddings": ({"model_type": "electra", "embedding_size": 4}, "embeddings of width 4"),
    "tasks": ({"use_task_id": True}, "use_task_id True"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_the_network_cannot_be_is_refused_by_name(form: str, tmp_path: Path) -> None:
    changed, named = REFUSED[form]
    path = folder(tmp_path, BERT)
    (path / "config.json").write_text(json.dumps(BERT | changed))
    for attempt in (
        lambda: load_pretrained(Bert(BertConfig(**OURS)), path),
        lambda: load_preset("emt/mosi", [f"protocol.text_encoder={path}"]),
    ):
        with pytest.raises(UnsupportedError, match=named):
            attempt()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"vocab_size": 120}, "lacks"),
        ({"name": "something else"}, "lacks"),
        (BERT | {"hidden_size": "wide"}, "hidden_size is 'wide', expected a number"),
        (BERT | {"num_attention_heads": 5}, "12 is not a multiple of heads 5"),
        (BERT | {"num_hidden_layers": 0}, "layers"),
    ],
)
def test_a_config_that_describes_no_encoder_is_an_input_error(
    content: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=named):
        read_config(tmp_path)


def test_weights_without_a_config_are_not_an_encoder_folder(tmp_path: Path) -> None:
    path = folder(tmp_path, BERT)
    (path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        load_pretrained(Bert(BertConfig(**OURS)), path)


SECTIONS = {
    "emt": ("emt/mosi", "bert", "text_encoder", BERT),
    "emt with roberta": ("emt/mosi", "bert", "text_encoder", ROBERTA),
    "mult": ("mult/mosi", "bert", "text_encoder", BERT),
    "tfr_net": ("tfr_net/mosi", "bert", "text_encoder", BERT),
    "tab text": ("tab/iemocap", "text", "text_encoder", ROBERTA),
    "tab audio": ("tab/iemocap", "audio", "audio_encoder", ROBERTA),
    "facialmmt": ("facialmmt/meld_roberta", "bert", "text_encoder", ROBERTA),
    "facialmmt with bert": ("facialmmt/meld_bert", "bert", "text_encoder", BERT),
}


def test_special_tokens_are_those_of_the_folder_s_vocabulary(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", *"abcdefg"]
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"vocab_size": len(pieces)}))
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    bert = load_preset("emt/mosi", [f"protocol.text_encoder={tmp_path}"]).model["bert"]
    assert (bert["vocabulary"], bert["first_token"], bert["last_token"], bert["unknown_token"]) == (12, 3, 4, 2)


CHANGES = {"heads": 4, "positions": 63, "epsilon": 1e-7, "feed_forward": 24, "layers": 1, "first_position": 3}


def configured(case: str, tmp_path: Path, *sets: str) -> TrainConfig:
    preset, _, setting, content = SECTIONS[case]
    path = folder(tmp_path / "encoder", content)
    plain = [] if preset != "facialmmt/meld_bert" else [f"model.bert.{k}={v}" for k, v in OURS.items()]
    return load_preset(preset, [f"protocol.{setting}={path}", *plain, *sets])


@pytest.mark.parametrize("case", SECTIONS)
def test_what_a_preset_does_not_say_is_taken_from_the_folder(case: str, tmp_path: Path) -> None:
    _, section, _, content = SECTIONS[case]
    config = configured(case, tmp_path)
    found = config.model[section]
    roberta = content is ROBERTA
    assert found | OURS == found
    assert (found["first_position"], found["first_token"], found["last_token"]) == (
        (2, 0, 2) if roberta else (0, 101, 102)
    )
    assert found["epsilon"] == content["layer_norm_eps"]
    load_pretrained(Bert(BertConfig.model_validate(found)), tmp_path / "encoder", f"model.{section}")


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("case", SECTIONS)
def test_a_setting_that_contradicts_the_folder_is_an_error_with_both_values(
    case: str, name: str, tmp_path: Path
) -> None:
    _, section, _, content = SECTIONS[case]
    theirs = OURS | {"epsilon": content["layer_norm_eps"], "first_position": 2 if content is ROBERTA else 0}
    with pytest.raises(UsageError) as caught:
        configured(case, tmp_path, f"model.{section}.{name}={CHANGES[name]}")
    assert f"model.{section}.{name} is {CHANGES[name]}, " in str(caught.value)
    assert f"config.json says {theirs[name]}:" in str(caught.value)


def test_weights_of_equal_shape_are_not_loaded_with_other_heads(tmp_path: Path) -> None:
    path = folder(tmp_path, BERT)
    with pytest.raises(UsageError, match=r"model\.bert\.heads is 6, .*config\.json says 3"):
        load_pretrained(Bert(BertConfig(**OURS | {"heads": 6})), path)
    with pytest.raises(UsageError, match=r"model\.text\.epsilon is 1e-05, .*config\.json says 1e-12"):
        load_pretrained(Bert(BertConfig(**OURS, epsilon=1e-5)), path, "model.text")


def test_how_a_dialogue_is_packed_has_to_fit_the_kind_of_encoder(tmp_path: Path) -> None:
    bert = folder(tmp_path / "bert", BERT)
    with pytest.raises(UsageError, match=r"model\.encoder is roberta, .*config\.json says bert"):
        load_preset("facialmmt/meld_roberta", [f"protocol.text_encoder={bert}"])
    values = {"system": "facialmmt", "epochs": 1, "model": SMALL, "protocol": {"text_encoder": "gone"}}
    assert parse_config(values).model["encoder"] == "bert"


PRETRAINED = {"emt/mosi", "emt/mosei", "emt/sims", "mult/mosi", "mult/mosei", "mult/sims", "tfr_net/mosi"}
PRETRAINED |= {"tfr_net/mosei", "tfr_net/sims", "sample/mosi_emt_bert", "sample/meld_facialmmt"}
PRETRAINED |= {n for n in PRESETS if n.startswith("facialmmt/") and n != "facialmmt/meld_vision"}
PRETRAINED |= {n for n in PRESETS if n.startswith("tab/") and n != "tab/iemocap_tab"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_starts_from_pretrained_encoders_or_says_random(name: str) -> None:
    config = load_preset(name)
    settings = recipe(config.system).settings.model_validate(config.protocol)
    model = registry.get(config.system).parse(config.model)
    check_sources(settings, model, start=False)
    if name not in PRETRAINED:
        return check_sources(settings, model, start=True)
    with pytest.raises(UsageError, match=r"protocol\.(text|audio|face)_encoder is not set.*random"):
        check_sources(settings, model, start=True)
    return None


def test_training_on_a_random_encoder_is_asked_for(mer: Mer, tmp_path: Path) -> None:
    mer("synth", "emt", "--dialogues", "20", "--out", tmp_path / "data")
    words = ["emt", "--preset", "synthetic/emt_mosi", "--data", tmp_path / "data", "--set", "epochs=1", "--quiet"]
    code, _, err = mer("train", *words, "--out", tmp_path / "a", "--set", "protocol.text_encoder=null")
    assert (code, "protocol.text_encoder is not set" in err) == (2, True)
    assert not (tmp_path / "a").exists()
    code, _, err = mer("train", *words, "--out", tmp_path / "b")
    assert code == 0, err
    started = ["--set", f"init={tmp_path / 'b'}", "--set", "protocol.train_text_encoder=false"]
    code, _, err = mer(
        "train", *words, "--out", tmp_path / "c", *started, "--set", "protocol.text_encoder=null", "--dry-run"
    )
    assert code == 0, err
    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = folder(tmp_path / "encoder", BERT | sizes | {"intermediate_size": 64})
    code, _, err = mer("train", *words, "--out", tmp_path / "c", *started, "--set", f"protocol.text_encoder={encoder}")
    assert code == 0, err
    before, after = (load_file(tmp_path / run / WEIGHTS) for run in "bc")
    assert all(torch.equal(before[n], after[n]) for n in after if n.startswith("bert.")), (
        "the bundle's, not the folder's"
    )


@pytest.mark.parametrize(
    ("preset", "sets", "named"),
    [
        ("tab/iemocap_tab", ["protocol.text_encoder=x"], "protocol.text_encoder is x, and this model has no such"),
        ("tab/iemocap_text_tab", ["protocol.audio_encoder=x"], "protocol.audio_encoder is x"),
        ("tab/iemocap_tab", ["protocol.lhs=x"], "protocol.lhs is x"),
        ("facialmmt/meld_vision", ["protocol.text_encoder=x"], "protocol.text_encoder is x"),
        ("facialmmt/meld_fusion", ["protocol.face_encoder=x"], "protocol.face_encoder is x"),
        ("emt/mosi", ["model.bert=null", "protocol.text_encoder=x"], "protocol.text_encoder is x"),
    ],
)
def test_an_encoder_that_nobody_reads_is_refused(preset: str, sets: list[str], named: str) -> None:
    config = load_preset(preset, sets)
    settings = recipe(config.system).settings.model_validate(config.protocol)
    with pytest.raises(UsageError, match=named):
        check_sources(settings, registry.get(config.system).parse(config.model), start=False)


def test_a_fine_tuned_stage_and_an_encoder_of_its_own_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="lhs brings both encoders"):
        load_preset("tab/iemocap", ["protocol.lhs=a", "protocol.text_encoder=b"])


def test_the_arguments_of_a_fairseq_file_decide_too(tmp_path: Path) -> None:
    source = Bert(roberta(**OURS, segments=0))
    state = {theirs: source.state_dict()[ours] for theirs, ours in fairseq.renames(source.config, "", "").items()}
    arguments = {"encoder_attention_heads": 3, "encoder_layers": 2, "activation_fn": "gelu"}

    def load(heads: int, **changes: Any) -> None:
        torch.save({"args": Namespace(**arguments | changes), "model": state}, tmp_path / "model.pt")
        load_encoder(Bert(roberta(**OURS | {"heads": heads}, segments=0)), tmp_path / "model.pt", "model.audio")

    load(3)
    with pytest.raises(UsageError, match=r"model\.audio\.heads is 6, .*model\.pt says 3"):
        load(6)
    with pytest.raises(UnsupportedError, match="activation_fn 'relu'"):
        load(3, activation_fn="relu")


def test_an_earlier_run_on_random_encoders_goes_on(mer: Mer, tmp_path: Path) -> None:
    """Until 0.1 its configuration asked for them by naming none."""
    mer("synth", "emt", "--dialogues", "20", "--out", tmp_path / "data")
    config = load_preset("synthetic/emt_mosi", ["epochs=2", "keep.rule=last"])
    bundle = fit(config, tmp_path / "data", tmp_path / "run", quiet=True)
    kept = read_yaml(bundle.path(CONFIG))
    kept["protocol"]["text_encoder"] = None
    with bundle.commit() as change:
        change.write(CONFIG, yaml.safe_dump(kept, sort_keys=False))
    for said in ("random", "null"):
        again = load_preset("synthetic/emt_mosi", ["epochs=2", "keep.rule=last", f"protocol.text_encoder={said}"])
        assert fit(again, tmp_path / "data", tmp_path / "run", quiet=True).manifest.system == "emt"
    other = load_preset("synthetic/emt_mosi", ["epochs=2", "keep.rule=last", "protocol.text_encoder=other"])
    with pytest.raises(UsageError, match=r"another protocol\.text_encoder"):
        fit(other, tmp_path / "data", tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ("vision", {"width": 12, "heads": 3, "cross_heads": 5, "cross_vision_heads": 7}),
        ("vision", {"audio_len": 9, "audio_positions": 2}),
        ("face", {"width": 10, "heads": 4, "vision_len": 9, "vision_positions": 2}),
    ],
)
def test_a_variant_of_facialmmt_is_checked_for_what_it_uses(variant: str, wrong: dict[str, int]) -> None:
    system = registry.get("facialmmt")
    assert system.build(system.parse(VARIANTS[variant] | wrong))
    with pytest.raises(UsageError, match=r"is not a multiple of|are fewer than"):
        system.parse(VARIANTS["fusion"] | wrong)


@pytest.mark.parametrize(("variant", "modality"), [("vision", "audio"), ("face", "vision"), ("face", "audio")])
def test_a_variant_of_facialmmt_standardises_what_it_reads(variant: str, modality: str) -> None:
    with pytest.raises(UsageError, match=f"standardise {modality} is for a model with {modality}"):
        registry.get("facialmmt").parse(VARIANTS[variant] | {"standardise": [modality]})


def test_a_sentence_encoder_pools_as_its_folder_says(tmp_path: Path) -> None:
    path = folder(tmp_path / "encoder", BERT)
    (path / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(UsageError, match=r"pooling is first, .*config\.json says mean: pass --pooling mean"):
        import_folder(path, tmp_path / "sentences", Wanted(pooling="first"))
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UnsupportedError, match="pooling_mode_max_tokens"):
        import_folder(path, tmp_path / "sentences")


def test_a_sentence_encoder_whose_vectors_take_a_step_that_is_not_done_here_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "encoder", BERT)
    steps = [{"idx": i, "type": f"sentence_transformers.models.{n}"} for i, n in enumerate(("Transformer", "Dense"))]
    for listed, error, named in (
        (steps, UnsupportedError, "has a step Dense behind the network"),
        ({"Normalize": 1}, InputError, "is no list of modules"),
    ):
        (path / "modules.json").write_text(json.dumps(listed))
        with pytest.raises(error, match=named):
            import_folder(path, tmp_path / "sentences")
