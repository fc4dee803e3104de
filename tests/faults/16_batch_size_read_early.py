"""The image's batch size, read at the top of forward and used in a later part.

Today: refused for a false reason, or, depending on the argument's name, SyntaxError from reverse or KeyError at the
first forward.
Right: works, for any batch size: a number that follows the batch follows it in the result.
Why: SPEC 1.1.
"""

from common import Plain, image, same

from td_compiler import reverse


class Early(Plain):
    def forward(self, x):
        n = x.shape[0]
        x = self.mid(self.maps(x))
        _, c, h, w = x.shape
        return self.fc(self.pool(x.view(n, c, h, w)).view(n, -1))


class OtherName(Plain):
    def forward(self, pictures):
        batch = pictures.size(0)
        y = self.pool(self.maps(pictures))
        return self.fc(y.reshape(batch, y.numel() // batch))


class Unpacked(Plain):
    def forward(self, images):
        count, channels, height, width = images.shape
        y = self.maps(images)
        return self.fc(y.reshape(count, -1, (height // 4) * (width // 4)).mean(2))


CASES = [(kind.__name__, kind, (3, 32, 32), {}) for kind in (Early, OtherName, Unpacked)]


def check(label, model, td):
    for batch in (1, 3):
        x = image(batch=batch)
        assert td(x).shape == (batch, 10), f"{tuple(td(x).shape)} for {batch} images"
        same(td, reverse(Plain(), input_size=(3, 32, 32)), x)
