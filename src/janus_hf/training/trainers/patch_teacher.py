"""K-means over pixel patches: the teacher that names the codes of a codec."""

import torch
import torch.nn.functional as F


class PatchTeacher:
    """Names every patch of a picture by the nearest of `K` centres of raw pixel patches.

    Args:
        centres: `(K, 3 * f * f)` float32, pixel patches in [-1, 1].
        patch_size: `f`, the codec's downsampling.
    """

    def __init__(self, centres: torch.Tensor, patch_size: int) -> None:
        self.centres = centres
        self.patch_size = patch_size

    @classmethod
    def fit(cls, pixel_values: torch.Tensor, num_codes: int, patch_size: int, *, seed: int = 0) -> "PatchTeacher":
        """K-means over the distinct patches of `(B, 3, S, S)` pictures; fewer distinct patches than codes give one
        centre each.
        """
        patches = torch.unique(_patches(pixel_values, patch_size), dim=0)
        return cls(patches if len(patches) <= num_codes else kmeans(patches, num_codes, seed=seed), patch_size)

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, S, S)` in [-1, 1] -> ids `(B, P)` int64, row by row."""
        patches = _patches(pixel_values, self.patch_size)
        return torch.cdist(patches, self.centres.to(patches)).argmin(dim=-1).view(len(pixel_values), -1)

    def codebook(self, num_codes: int, width: int, *, seed: int = 0, steps: int = 60) -> torch.Tensor:
        """`(num_codes, width)` unit vectors for the centres: alike patches stay near each other, none too near to tell
        apart.

        The centres' principal components, whitened and put on the sphere, then pushed apart for a few steps; codes
        without a centre are placed at random.
        """
        generator = torch.Generator().manual_seed(seed)
        centred = self.centres - self.centres.mean(dim=0)
        directions = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
        components = centred @ directions.T
        components = F.pad(components / components.std(dim=0).clamp(min=1e-6), (0, width - components.shape[1]))
        spare = torch.randn(num_codes - len(components), width, generator=generator)
        vectors = F.normalize(torch.cat([components, spare]) + 1e-4, dim=-1).requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=0.01)
        itself = 2 * torch.eye(num_codes)
        for _ in range(steps):
            unit = F.normalize(vectors, dim=-1)
            crowding = (12 * (unit @ unit.T - itself)).logsumexp(dim=-1).mean()
            optimizer.zero_grad()
            crowding.backward()
            optimizer.step()
        return F.normalize(vectors.detach(), dim=-1)


def _patches(pixel_values: torch.Tensor, size: int) -> torch.Tensor:
    """`(B, 3, S, S)` -> `(B * (S / size) ** 2, 3 * size * size)`, row by row."""
    return F.unfold(pixel_values, size, stride=size).transpose(1, 2).flatten(0, 1)


def kmeans(points: torch.Tensor, num_centres: int, *, iterations: int = 30, seed: int = 0) -> torch.Tensor:
    """Lloyd's algorithm from a k-means++ start: `(N, D)` -> `(num_centres, D)`.

    Raises:
        ValueError: If there are fewer points than centres.
    """
    if len(points) < num_centres:
        raise ValueError(f"k-means needs at least as many points as centres, got {len(points)} and {num_centres}.")
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = torch.cdist(points, points[chosen]).squeeze(1).square()
    for _ in range(num_centres - 1):
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights.cpu(), 1, generator=generator)))
        distance = torch.minimum(distance, torch.cdist(points, points[chosen[-1:]]).squeeze(1).square())
    centres = points[chosen].clone()
    for _ in range(iterations):
        nearest = torch.cdist(points, centres).argmin(dim=-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=num_centres).unsqueeze(-1)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


__all__ = ["PatchTeacher", "kmeans"]
