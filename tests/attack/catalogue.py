"""Every attack by its name, family by family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attack.families import floods, grpc_layer, headers, life_cycle, resets, smuggling, windows

if TYPE_CHECKING:
    from tests.attack.family import Attack

FAMILIES = (resets, floods, headers, smuggling, windows, grpc_layer, life_cycle)

CATALOGUE: dict[str, Attack] = {name: attack for each in FAMILIES for name, attack in each.family.attacks.items()}
