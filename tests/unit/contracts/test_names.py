"""The names that the specification gives, where it puts them."""

import esper.services
from esper.contracts import health, kernel
from esper.services import contracts


def test_what_is_imported_from_the_services_is_the_one_definition() -> None:
    assert contracts.HealthSignal is health.HealthSignal
    for name in contracts.__all__:
        if hasattr(kernel, name):
            assert getattr(contracts, name) is getattr(kernel, name)


def test_the_names_of_old_are_the_things_themselves() -> None:
    assert contracts.SimpleBlueprintContract is kernel.BlueprintContract
    assert contracts.SimpleCompiledKernelContract is kernel.CompiledKernelContract
    assert esper.services.SimpleBlueprintContract is kernel.BlueprintContract
    assert esper.services.SimpleCompiledKernelContract is kernel.CompiledKernelContract


def test_a_service_package_names_what_it_has_not() -> None:
    assert not hasattr(esper.services, "Nonsense")
