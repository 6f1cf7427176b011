"""`PatchTeacher`, which assigns codes to image patches as targets for training an image codec, and `kmeans`."""

import torch
import torch.nn.functional as F


class PatchTeacher:
    """Callable that assigns a code to every patch of an image: the index of the nearest of `K` centres in pixel space.

    The codes are targets for training an image codec.

    Args:
        centres: Pixels of the centres, `(K, 3 * f * f)` float32 in [-1, 1].
        patch_size: Side `f` of a patch in pixels, which is the codec's downsampling factor.
    """

    def __init__(self, centres: torch.Tensor, patch_size: int) -> None:
        self.centres = centres
        self.patch_size = patch_size

    @classmethod
    def fit(cls, pixel_values: torch.Tensor, num_codes: int, patch_size: int, *, seed: int = 0) -> "PatchTeacher":
        """Return a teacher whose centres are found by k-means over the distinct patches of images.

        Args:
            pixel_values: Images `(B, 3, S, S)` in [-1, 1].
            num_codes: Maximum number of centres. If there are at most this many distinct patches, each of them becomes
                a centre, and the codes represent these images without loss.
            patch_size: Side of a patch in pixels; must divide `S`.
            seed: Random seed of k-means.
        """
        patches = torch.unique(_cut_patches(pixel_values, patch_size), dim=0)
        return cls(patches if len(patches) <= num_codes else kmeans(patches, num_codes, seed=seed), patch_size)

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the code of every patch of the images, with the patches of an image in row-major order.

        Args:
            pixel_values: Images `(B, 3, S, S)` in [-1, 1].

        Returns:
            Codes `(B, P)`, int64 in `[0, K)`, where `P` is the number of patches per image and `K` that of centres.
        """
        patches = _cut_patches(pixel_values, self.patch_size)
        return torch.cdist(patches, self.centres.to(patches)).argmin(dim=-1).view(len(pixel_values), -1)

    def codebook(self, num_codes: int, width: int, *, seed: int = 0, steps: int = 60) -> torch.Tensor:
        """Return a codebook with one unit vector per code, in which similar patches have vectors near each other.

        The vectors are then pushed apart, so that a classifier can separate them.

        Args:
            num_codes: Number of vectors, at least the number of centres. Codes without a centre get random vectors.
            width: Dimension of the vectors.
            seed: Seed of the random vectors.
            steps: Number of optimisation steps that push the vectors apart.

        Returns:
            The vectors, `(num_codes, width)` float32.
        """
        generator = torch.Generator().manual_seed(seed)
        # Whitened principal components keep similar patches near each other and use all directions equally.
        centred = self.centres - self.centres.mean(dim=0)
        directions = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
        components = centred @ directions.T
        components = F.pad(components / components.std(dim=0).clamp(min=1e-6), (0, width - components.shape[1]))
        spare = torch.randn(num_codes - len(components), width, generator=generator)
        # The small constant gives a direction to a centre at the mean of all patches, which would be a zero vector.
        vectors = F.normalize(torch.cat([components, spare]) + 1e-4, dim=-1).requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=0.01)
        itself = 2 * torch.eye(num_codes)
        for _ in range(steps):
            unit = F.normalize(vectors, dim=-1)
            # A soft maximum of the cosines with all other vectors; subtracting 2 excludes the vector itself.
            crowding = (12 * (unit @ unit.T - itself)).logsumexp(dim=-1).mean()
            optimizer.zero_grad()
            crowding.backward()
            optimizer.step()
        return F.normalize(vectors.detach(), dim=-1)


def _cut_patches(pixel_values: torch.Tensor, size: int) -> torch.Tensor:
    """Cut images `(B, 3, S, S)` into patches `(B * (S / size) ** 2, 3 * size * size)`, row by row of each image."""
    return F.unfold(pixel_values, size, stride=size).transpose(1, 2).flatten(0, 1)


def kmeans(points: torch.Tensor, num_centres: int, *, iterations: int = 30, seed: int = 0) -> torch.Tensor:
    """Return the centres that k-means finds for points (Lloyd's algorithm, initialised by k-means++).

    Args:
        points: The points, `(N, D)` float.
        num_centres: Number of centres.
        iterations: Maximum number of iterations. The algorithm stops earlier if no centre moves any more.
        seed: Random seed of the initialisation.

    Returns:
        The centres, `(num_centres, D)`, in the dtype and on the device of the points.

    Raises:
        ValueError: If there are fewer points than centres.
    """
    if len(points) < num_centres:
        raise ValueError(
            "k-means must have at least as many points as centres, got "
            f"{len(points)} and {num_centres}: pass more points or ask for fewer centres."
        )
    generator = torch.Generator().manual_seed(seed)
    # k-means++: each further centre is a point, chosen with probability proportional to its squared distance from the
    # centres so far.
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = torch.cdist(points, points[chosen]).squeeze(1).square()
    for _ in range(num_centres - 1):
        # With fewer distinct points than centres all distances become zero, and any point can be chosen.
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights.cpu(), 1, generator=generator)))
        distance = torch.minimum(distance, torch.cdist(points, points[chosen[-1:]]).squeeze(1).square())
    centres = points[chosen].clone()
    for _ in range(iterations):
        nearest = torch.cdist(points, centres).argmin(dim=-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=num_centres).unsqueeze(-1)
        # A centre that is nearest to no point stays where it is.
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


__all__ = ["PatchTeacher", "kmeans"]
