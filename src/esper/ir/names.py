"""How nodes and blueprints may be called."""

import re

NODE_ID = re.compile(r"[a-z][a-z0-9_]{0,62}")
BLUEPRINT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,127}")
NAME_RULE = "a letter, then up to 127 letters, digits, '_', '.' or '-'"
ID_RULE = "a small letter, then up to 62 small letters, digits or '_'"

LONGEST_SHOWN = 80
"""Letters of a name that an error repeats."""

# A node's parameters live in a module called like the node, so the attributes of torch modules are taken.
# A test compares this list with the attributes of a built kernel.
RESERVED_IDS = frozenset(
    {
        "input",
        "add_module",
        "apply",
        "bfloat16",
        "bind",
        "buffers",
        "call_super_init",
        "children",
        "compile",
        "cpu",
        "cuda",
        "double",
        "dump_patches",
        "eval",
        "extra_repr",
        "float",
        "forward",
        "get_buffer",
        "get_extra_state",
        "get_parameter",
        "get_submodule",
        "half",
        "ipu",
        "ir",
        "load_state_dict",
        "modules",
        "mtia",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "parameters",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_module",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "requires_grad_",
        "set_extra_state",
        "set_submodule",
        "share_memory",
        "state_dict",
        "to",
        "to_empty",
        "train",
        "training",
        "type",
        "xpu",
        "zero_grad",
    }
)


def shown(name: object) -> str:
    """Return a name that somebody sent so that it can be written down: cut, and what cannot be printed as its escape."""
    text = str(name)[:LONGEST_SHOWN]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def is_node_id(text: str) -> bool:
    """Say whether a node may be called so."""
    return NODE_ID.fullmatch(text) is not None and text not in RESERVED_IDS


def is_blueprint_name(text: str) -> bool:
    """Say whether a blueprint may be called so."""
    return BLUEPRINT_NAME.fullmatch(text) is not None
