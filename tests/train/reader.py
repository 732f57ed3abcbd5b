"""Reads a page as a browser would, and notices tags that do not match."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Tags that are open, all attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.words, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader
