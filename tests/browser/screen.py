"""What a test sees of the dashboard: pages, problems, and whether it has come to rest."""

from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import Page, TimeoutError, expect

WAIT = 90_000


class Screen:
    """A browser page that notes errors on the console and requests that leave this machine."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("request", lambda request: self._leaves(request.url))

    def open(self, path: str = "", **parameters: str) -> None:
        """Open a page of the dashboard and wait until it is drawn."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        self.page.goto(f"{self.url}/{path}{query}")
        self.rest()

    def rest(self) -> None:
        """Wait until the script has run and no skeleton is left."""
        expect(self.page.locator("[data-testid=stApp]")).to_be_visible(timeout=WAIT)
        expect(self.page.locator("h1").first).to_be_visible(timeout=WAIT)
        self.page.wait_for_selector("[data-test-script-state=notRunning]", state="attached", timeout=WAIT)
        expect(self.page.locator("[data-testid=stSkeleton]")).to_have_count(0, timeout=WAIT)

    def address_has(self, text: str, *, present: bool = True, patience: int = WAIT) -> None:
        """Wait until the address holds ``text``, or no longer does; ``patience`` in milliseconds."""
        script = "([text, present]) => decodeURIComponent(location.href).includes(text) === present"
        self.page.wait_for_function(script, arg=[text, present], timeout=patience)

    def click_at(self, place: Callable[[], tuple[float, float]], text: str, *, present: bool = True) -> None:
        """Click a place of a chart, again where it was being drawn, until the address has ``text`` or no longer."""
        for patience in (20_000, 20_000, WAIT):
            self.page.mouse.click(*place())
            try:
                self.address_has(text, present=present, patience=patience)
            except TimeoutError:
                continue
            return self.rest()
        raise AssertionError(f"no click changed the address to {'' if present else 'not '}have {text}: {self.page.url}")

    def check(self) -> None:
        """Nothing failed, nothing was fetched from elsewhere, nothing is wider than the window."""
        expect(self.page.locator("[data-testid=stException]")).to_have_count(0)
        expect(self.page.locator("[data-testid=stAlertContentError]")).to_have_count(0)
        assert not self.problems, self.problems
        width = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, f"the page is {width} pixels wider than the window"

    def _note(self, message: object) -> None:
        kind, text = getattr(message, "type", ""), getattr(message, "text", "")
        place = getattr(message, "location", {}).get("url", "")
        # Below a page's address Streamlit first looks for its server in the wrong folder.
        if kind == "error" and "/_stcore/" not in place:
            self.problems.append(f"console: {text} {place}")

    def _leaves(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.problems.append(f"request to {parts.hostname}")
