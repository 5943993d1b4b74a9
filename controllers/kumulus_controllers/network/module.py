"""The module `controllers.network`."""

from __future__ import annotations

from kumulus.runtime.modules import Context, Module
from kumulus_controllers.network.claim import ClaimReconciler
from kumulus_controllers.network.external import ExternalNetworkReconciler
from kumulus_controllers.network.floating import FloatingReconciler
from kumulus_controllers.network.group import GroupReconciler
from kumulus_controllers.network.interface import InterfaceReconciler
from kumulus_controllers.network.load_balancer import LoadBalancerReconciler
from kumulus_controllers.network.network import NetworkReconciler
from kumulus_controllers.network.network_class import NetworkClassReconciler
from kumulus_controllers.network.physical import PhysicalNetworkReconciler
from kumulus_controllers.network.router import RouterReconciler
from kumulus_controllers.network.segment import SegmentReconciler


async def _setup(context: Context) -> None:
    services = context.services
    context.reconcilers.append(NetworkClassReconciler(services))
    context.reconcilers.append(NetworkReconciler(services))
    context.reconcilers.append(SegmentReconciler(services))
    context.reconcilers.append(InterfaceReconciler(services))
    context.reconcilers.append(ClaimReconciler(services))
    context.reconcilers.append(GroupReconciler(services))
    context.reconcilers.append(PhysicalNetworkReconciler(services))
    context.reconcilers.append(ExternalNetworkReconciler(services))
    context.reconcilers.append(RouterReconciler(services))
    context.reconcilers.append(FloatingReconciler(services))
    context.reconcilers.append(LoadBalancerReconciler(services))


network = Module(
    description="Tenant networks, their addresses and interfaces, security groups, routers, load balancers, and networks on"
    " hosts.",
    setup=_setup,
)
