import jax.numpy as jnp
import numpy as np

from bocb_jax.pose import oks
from bocb_jax.pose.predict import flip_test, score_persons
from bocb_jax.pose.skeleton import COCO_PERSON, Skeleton

SIGMAS = COCO_PERSON.sigmas


def test_persons_are_compared_within_their_image():
    rng = np.random.default_rng(0)
    count = 41
    image = rng.integers(0, 6, count) * 7
    base = rng.uniform(0, 200, (3, 17, 2))
    joints = base[rng.integers(0, 3, count)] + rng.normal(0, 1, (count, 17, 2))
    areas, boxes = rng.uniform(4000, 6000, count), rng.uniform(0.1, 1, count)
    of_joints = rng.uniform(0, 1, (count, 17))
    scores, kept = score_persons(joints, of_joints, boxes, areas, image, SIGMAS)
    expected = oks.person_scores(of_joints, boxes)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    similar = np.asarray(oks.oks(joints, areas, joints, areas, SIGMAS)) > 0.9
    for each in np.unique(image):
        left = sorted(np.flatnonzero(image == each), key=lambda i: -scores[i])
        while left:
            best, *left = left
            assert kept[best]
            assert not kept[[i for i in left if similar[best, i]]].any()
            left = [i for i in left if not similar[best, i]]
    assert 0 < kept.sum() < count


def test_no_persons():
    scores, kept = score_persons(
        np.zeros((0, 17, 2)), np.zeros((0, 17)), np.zeros(0), np.zeros(0), np.zeros(0, int), SIGMAS
    )
    assert scores.shape == kept.shape == (0,)


def test_flip_test_shows_the_mirrored_image():
    skeleton = Skeleton(("left", "right"), ((0, 1),), (1.0, 1.0))
    images = jnp.arange(2 * 3 * 4 * 3, dtype=jnp.float32).reshape(2, 3, 4, 3)
    maps = flip_test(lambda x: x[..., :2], images, skeleton)
    # Mirrored and mirrored back the image is itself, but for the exchange and the shift.
    own, exchanged = images[..., :2], images[..., 1::-1]
    np.testing.assert_allclose(maps[:, :, 0], (own[:, :, 0] + exchanged[:, :, 0]) / 2)
    np.testing.assert_allclose(maps[:, :, 1:], (own[:, :, 1:] + exchanged[:, :, :-1]) / 2)
