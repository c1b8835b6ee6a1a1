"""The selector: requests that are handed to other services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from examples.perlbal.clients import Exchange

if TYPE_CHECKING:
    from examples.perlbal.services import Service


class SelectorExchange(Exchange):
    """A request to a selector, which finds the service to answer it."""

    takes_body = False  # The body goes to that service.

    def start(self) -> None:
        if self.service.latency:
            self.client.watch_read(False)
            self.later(self.service.latency / 1000, self._select_late)
        else:
            self._select()

    def _select_late(self) -> None:
        self.client.watch_read(True)
        self._select()
        self.client.go_on()

    def _select(self) -> None:
        if any(plugin.select(self) for plugin in self.service.plugins):
            return
        if self.service.default_service is not None:
            self.hand_over(self.service.default_service)
        else:
            self.client.send_page(500, "No service selector configured.")

    def hand_over(self, service: Service) -> None:
        self.service.munge_headers(self.request)
        self.client.hand_over(service, self.request)
