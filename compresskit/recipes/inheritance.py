"""Sections that say only what is different of another one."""

from compresskit.recipes.yaml_reader import Node


def over(base: Node, own: Node) -> Node:
    """`own` with what it leaves out taken from `base`, which stays as it is.

    Mappings are merged key by key, as keys on the command line would change them; anything else, and a mapping of
    another `kind`, takes the place of the base's.
    """
    if not isinstance(own.value, dict):
        return own
    known = base.value if isinstance(base.value, dict) else {"kind": base} if isinstance(base.value, str) else {}
    if "kind" in own.value and ("kind" not in known or own.value["kind"].plain() != known["kind"].plain()):
        return own
    inherited = {key: _inherited(node) for key, node in known.items()}
    changed = {key: over(known[key], node) if key in known else node for key, node in own.value.items()}
    return Node({**inherited, **changed}, own.line)


def _inherited(node: Node) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _inherited(child) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_inherited(child) for child in value]
    return Node(value, node.line, inherited=True)
