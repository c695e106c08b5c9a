"""Holds an exported program (.pt2) against what our exports say, before PyTorch loads it. Needs no torch.

PyTorch evaluates strings of such an archive as Python: expressions of symbolic shapes and guards by themselves, names
of values and parameters inside code that it generates; it imports modules that a tree of inputs names, looks operators
up by walking from `torch` whatever the path, and unpickles weights, constants and example inputs that say so. Here
every field of the program stands in a table with what it may hold, and an archive with another one is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mer_export.errors import InputError
from mer_export.untrusted.json_files import parse_json
from mer_export.untrusted.operators import ATEN
from mer_export.untrusted.program_archive import ProgramArchive

PROGRAM = "models/model.json"
TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
EXAMPLES = "data/sample_inputs/model.pt"
MEMBERS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_(format|version)|byteorder"
    r"|\.data/(version|serialization_id)"
)

NAME = re.compile(r"(?:[A-Za-z_]\w*)?", re.ASCII)
PLACE = re.compile(r"(?:\w+(?:\.\w+)*)?", re.ASCII)
"""A parameter, buffer or module by its path."""
NOTE = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f]*+")
"""Where in the source a node comes from; read by people only."""
SHAPE_FUNCTIONS = "Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Integer"
EXPRESSION = re.compile(
    rf"(?:Symbol\('[su]\d+'(?:, (?:positive|integer|nonnegative)=True)*\)|(?:{SHAPE_FUNCTIONS})(?=\()"
    r"|[su]\d{1,6}\b|\d{1,19}(?![\w.(])|//|\*(?!\*)|[-+(), ])*+",
    re.ASCII,
)
GUARD = re.compile(r"(?:L\['\w+'\](?:\.size\(\)\[\d+\])?|\d{1,19}| (?:==|!=|<=|>=|<|>) )*+", re.ASCII)
MOST = 10_000
LONGEST = {"expr_str": 1000, "guards_code": 1000, "stack_trace": 100_000, "in_spec": 100_000, "out_spec": 100_000}
"""Characters of a text by field; others have up to `MOST`."""
OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+|_operator\.(\w+)", re.ASCII)
PYTHON = frozenset({"add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge"})
"""Functions of the operator module on sizes."""
OPERATORS = ATEN | {"_assert_tensor_metadata"}
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
BRANCHES = ("builtins.tuple", "builtins.list", "builtins.dict")
ENTRY = ""
"""Stands for what a program keeps under a name of its own choice."""

STRUCTURE = """
arg buffer device graph graph_module hint input_specs inputs metadata module_call_graph nodes output_specs
outputs parameter range_constraints schema_version signature storage_offset strides sizes tensor_constant
tensor_values sym_int_values sym_bool_values sym_float_values user_input user_output opset_version
tensor_meta config as_tensor as_tensors as_optional_tensors as_sym_int as_sym_ints as_sym_bool as_sym_float
as_expr as_device custom_obj_values treespec_namedtuple_fields
"""
NUMBERS = """
as_bool as_bools as_float as_floats as_int as_ints as_layout as_memory_format as_none as_scalar_type dtype
index is_hop_single_tensor_return is_param is_single_tensor_return kind layout major max_val min_val minor
persistent requires_grad use_pickle
"""
Field = re.Pattern[str] | type | None
"""What a field may hold besides further fields: texts of a pattern, numbers (`int`), or nothing more (None)."""
FIELDS: Mapping[str, Field] = {
    **dict.fromkeys(STRUCTURE.split(), None),
    ENTRY: None,
    **dict.fromkeys(NUMBERS.split(), int),
    **dict.fromkeys(("name", "as_name", "forward_arg_names"), NAME),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "fqn"), PLACE),
    **dict.fromkeys(("stack_trace", "nn_module_stack", "torch_fn", "torch_version"), NOTE),
    "as_string": re.compile(r"[\w:,.> -]{0,64}", re.ASCII),
    "expr_str": EXPRESSION,
    "guards_code": GUARD,
    "in_spec": NOTE,
    "out_spec": NOTE,
    "path_name": re.compile(r"(?:weight|tensor)_\d+", re.ASCII),
    "target": OPERATOR,
    "type": re.compile("cpu|cuda"),
    "verifiers": re.compile("TRAINING|ATEN"),
}
LISTS = {"as_bools", "as_floats", "as_ints", "forward_arg_names", "guards_code", "verifiers"}
"""Fields that hold several values."""
NAMED = {"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "range_constraints", "opset_version"}
NAMED |= {"config", "custom_obj_values", "treespec_namedtuple_fields"}
"""Fields whose own fields are names that the program chose."""
EMPTY = {"custom_obj_values", "treespec_namedtuple_fields"}
"""Fields that hold nothing in any export of ours: objects of classes."""


def check(path: Path) -> None:
    """Refuses an exported program that holds anything which our exports do not.

    Raises:
        UntrustedError: names what it holds, or why it cannot be checked.
    """
    with ProgramArchive.open(path) as archive:
        known = {PROGRAM, EXAMPLES, *TABLES}
        for name in archive.members:
            if name not in known and not MEMBERS.fullmatch(name):
                raise archive.refusal(f"holds {name}, which no export of ours has")
        if archive.members.get(EXAMPLES) is None or archive.members[EXAMPLES].size:
            raise archive.refusal("holds pickled example inputs")
        for name in (PROGRAM, *TABLES):
            try:
                content = parse_json(archive.read(name), name)
                problem = next(_problems(content, ENTRY), None)
            except (InputError, ValueError, TypeError, RecursionError):
                raise archive.refusal(f"holds a damaged {name}") from None
            if problem:
                raise archive.refusal(problem)


def _problems(value: Any, field: str) -> Iterator[str]:
    """What in the value of a field is not in the table."""
    allowed = FIELDS[field]
    if isinstance(value, dict) and allowed is None:
        if field in EMPTY and value:
            yield f"holds {field}, objects of classes"
        for key, inner in value.items():
            if field in NAMED:
                named = (PLACE if field == "config" else NAME).fullmatch(key)
                yield from _problems(inner, ENTRY) if named else [_unusual("a name", key)]
            elif key in FIELDS and key:
                yield from _problems(inner, key)
            else:
                yield _unusual("a field", key)
    elif isinstance(value, list) and (allowed is None or field in LISTS):
        for inner in value:
            yield from _problems(inner, field)
    elif value is not None and not _fits(value, field, allowed):
        yield _unusual(field, value)


def _fits(value: Any, field: str, allowed: Field) -> bool:
    if isinstance(value, str):
        if isinstance(allowed, re.Pattern):
            known = allowed.fullmatch(value) is not None and len(value) <= LONGEST.get(field, MOST)
            return known and (field not in OWN or OWN[field](value))
        return field in ("as_float", "as_floats") and value in ("Infinity", "-Infinity", "NaN")
    if field == "use_pickle":
        return value is False
    return isinstance(value, int | float) and (allowed is int or field == ENTRY)


def _unusual(what: str, value: Any) -> str:
    return f"has {what} {str(value)[:80]!r}, which no export of ours has"


def _known_operator(target: str) -> bool:
    found = OPERATOR.fullmatch(target)
    return found is not None and (found[1] in OPERATORS or found[2] in PYTHON)


def _known_tree(text: str) -> bool:
    """Whether a tree of arguments is made of tuples, lists and dicts; others name modules to import."""
    protocol, tree = json.loads(text)
    return protocol == 1 and _known_branch(tree)


def _known_branch(tree: Any) -> bool:
    if tree == LEAF:
        return True
    if not isinstance(tree, dict) or tree.keys() != LEAF.keys() or tree["type"] not in BRANCHES:
        return False
    context = json.loads(tree["context"])
    names = context or []
    known = isinstance(names, list) and all(isinstance(n, str) and NAME.fullmatch(n) for n in names)
    return known and all(_known_branch(child) for child in tree["children_spec"])


OWN: Mapping[str, Callable[[str], bool]] = {
    "target": _known_operator,
    "in_spec": _known_tree,
    "out_spec": _known_tree,
}
"""What a text has to pass beside its pattern."""
