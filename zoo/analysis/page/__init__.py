"""Self-contained web pages: escaped HTML, charts as SVG, and the parts of `zoo report`."""
