"""From photos to a dataset of views.

A photo becomes a person (``build_person``): inverse rendering explains it, its texture is
completed, hair and clothes are estimated. Other persons are sampled. A person becomes views
(``render_views``): scenes are drawn and rendered. Persons with their views become shards
(``make_shard_rows``), and all shards of a plan (``plan_synthesis``) a dataset (``synthesize``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dff.face.errors import (
    BadFit,
    BadLandmarks,
    BadPhoto,
    BudgetExceeded,
    NotFound,
    UnreadableObject,
)
from dff.face.extras import require_extra
from dff.face.io.assets import digest, load_albedo, load_model
from dff.face.model.morphable import MorphableModel
from dff.face.render import backends, zbuffer
from dff.face.render.visibility import Visibility
from dff.infra.datasets.dataset import MANIFEST, Manifest
from dff.infra.datasets.dataset_card import write_cards
from dff.infra.datasets.near_duplicates import describe_near_duplicates
from dff.infra.datasets.shards import ViewRow, make_sample_id
from dff.infra.photos.image_listing import IMAGE_SUFFIXES, describe_passed_over
from dff.infra.printing import counted, describe_duration
from dff.infra.storage import (
    WITH_CREDENTIALS,
    LocalStorage,
    S3Access,
    Storage,
    is_missing,
    open_storage,
)
from dff.pipeline.job import run as job
from dff.pipeline.job.plan import Plan, make_plan
from dff.pipeline.job.versions import ROW_MAKER
from dff.pipeline.job.work import (
    Failure,
    MakeRows,
    ShardPlan,
    ShardResult,
    Subject,
    WorkSpec,
    derive_seed,
)
from dff.pipeline.recovery.inverse import invert
from dff.pipeline.recovery.photos import PhotoRef, find_photos, name_split_groups, read_photo
from dff.pipeline.scene.expressions import ExpressionConfig
from dff.pipeline.scene.sampling import PROFILE_SHARE, SceneConfig
from dff.pipeline.scene.views import make_views
from dff.pipeline.subjects.build import join_photo_licence, recover_person, sample_person
from dff.pipeline.subjects.subject import Person
from dff.pipeline.subjects.subject_file import StoredPerson, store_person

with require_extra("synthesis"):
    from threadpoolctl import threadpool_limits

_log = logging.getLogger(__name__)

PHOTO_TERMS = "LicenseRef-photo"
"""Licence of rows made from photos of unknown terms: whatever the photos' terms are."""


@dataclass(frozen=True)
class ShardConfig:
    """How many subjects a shard has, which must not depend on the number of workers."""

    # At 256 px, in a shard of a large job: some 20 MB, minutes of work, and little to hold in
    # memory.
    views: int = 640
    few: int = 16  # shards of a small job


@dataclass(frozen=True)
class CostConfig:
    """Rough figures of one machine for estimates, at 256 px."""

    invert_seconds: float = 0.45  # of a photo, with its texture, on one core
    view_seconds: float = 0.011  # of a view
    view_bytes: float = 40_000.0  # of a row, its share of the person included


SHARD = ShardConfig()
COST = CostConfig()


@dataclass(frozen=True)
class Options:
    """Options that determine the rows of a job, besides its inputs and seed.

    Raises ValueError when out of range.
    """

    views: int = 20
    size: int = 256  # px, of the views
    texture_size: int = 512  # texels
    model: str = "open-head"
    albedo: str = "open-albedo"
    photo_terms: str = PHOTO_TERMS  # licence of the photos, for the rows
    renderer: str = "zbuffer"  # of dff.face.render.backends
    profile_share: float = PROFILE_SHARE  # of a photo's views: 3D face profiling
    deformed: float = 0.0  # share of the sampled faces with a residual deformation
    closed_eyes: float = 0.0  # share of the rendered views with eyes shut, or nearly

    def __post_init__(self) -> None:
        if self.views < 1 or not 32 <= self.size <= 2048 or not 64 <= self.texture_size <= 4096:
            raise ValueError(
                "synthesis needs at least one view of 32 to 2048 px and textures of 64 to 4096: "
                f"{self}"
            )
        for name in ("profile_share", "deformed", "closed_eyes"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"a share is 0 to 1, {name} is {getattr(self, name)}")
        backends.backend(self.renderer)

    def as_dict(self) -> dict[str, str | int | float | bool | None]:
        """The options by name, as plain values."""
        return dict(vars(self))


def build_row_maker(
    *,
    photos: str | None,
    endpoint_url: str | None,
    anonymous: bool = False,
    request_payer: bool = False,
    seed: int,
    **options: Any,
) -> MakeRows:
    """The work of one shard, for the photos at the URI ``photos``; ``options``: of ``Options``.

    Raises BadModel and StorageError.
    """
    chosen = Options(**options)
    storage = None
    if photos is not None:
        access = S3Access(anonymous, request_payer)
        storage = open_storage(photos, endpoint_url=endpoint_url, access=access)

    def make_rows(shard: ShardPlan) -> ShardResult:
        return make_shard_rows(shard, storage=storage, seed=seed, options=chosen)

    return make_rows


def make_shard_rows(
    shard: ShardPlan, *, storage: Storage | None, seed: int, options: Options
) -> ShardResult:
    """Every view of every subject of a shard.

    A photo that can't be used becomes a Failure, never an exception. Linear algebra runs in one
    thread: the order of its sums, and with it the last bit, would otherwise depend on how many
    cores a worker has.
    """
    model = load_model(options.model)
    rows: list[ViewRow] = []
    failures: list[Failure] = []
    with threadpool_limits(1):
        for subject in shard.subjects:
            try:
                person = build_person(subject, storage=storage, seed=seed, options=options)
                kept = store_person(person, model)
            except (BadPhoto, BadLandmarks, BadFit, NotFound, UnreadableObject) as error:
                failures.append(Failure(subject.id, type(error).__name__, str(error)))
                continue
            rows += render_views(
                kept,
                model=model,
                seed=seed,
                views=options.views,
                size=options.size,
                profile_share=options.profile_share,
                closed_eyes=options.closed_eyes,
                visibility=backends.backend(options.renderer),
            )
    return ShardResult(tuple(rows), tuple(failures))


def build_person(
    subject: Subject, *, storage: Storage | None, seed: int, options: Options
) -> Person:
    """The person of a plan's subject.

    Raises BadPhoto, BadLandmarks, BadFit; StorageError when storage fails.
    """
    model = load_model(options.model)
    albedo = load_albedo(options.albedo, model=model)
    rng = np.random.default_rng(derive_seed(seed, subject.id))
    if subject.photo is None:
        return sample_person(
            subject.id,
            model=model,
            albedo=albedo,
            texture_size=options.texture_size,
            rng=rng,
            deformed=options.deformed,
        )
    if storage is None:
        raise ValueError(f"{subject.id} is a photo, but no photos are given")
    recovery = invert(
        read_photo(storage, subject.photo), model=model, albedo=albedo, size=options.size
    )
    return recover_person(
        recovery,
        subject.id,
        model=model,
        albedo=albedo,
        texture_size=options.texture_size,
        licence=join_photo_licence(options.photo_terms, model, albedo),
        rng=rng,
        split_group=subject.photo.split_group,
    )


def render_views(
    kept: StoredPerson,
    *,
    model: MorphableModel,
    seed: int,
    views: int,
    size: int,
    profile_share: float = PROFILE_SHARE,
    closed_eyes: float = 0.0,
    visibility: Visibility = zbuffer.visibility,
) -> list[ViewRow]:
    """The views of a stored person under the job's ``seed``; the first row keeps the person."""
    person = kept.person
    first, *others = make_views(
        person,
        {view: derive_seed(seed, make_sample_id(person.id, view)) for view in range(views)},
        model=model,
        size=size,
        config=SceneConfig(
            profile_share=profile_share, expression=ExpressionConfig(closed_eyes=closed_eyes)
        ),
        visibility=visibility,
    )
    return [replace(first, person=kept.data), *others]


def plan_synthesis(
    photos: Storage | None,
    *,
    identities: int,
    seed: int,
    options: Options,
    shard_subjects: int | None = None,
) -> tuple[Plan, tuple[tuple[str, ...], ...]]:
    """The plan for all photos of a storage and ``identities`` sampled faces, and near-duplicates.

    Near-duplicates are groups of photo ids. Every photo is read to find them: they, and the photos
    of one person, are kept in one split.

    Without ``shard_subjects`` there are some sixteen shards for few subjects and full ones for
    many. Their number never depends on the number of workers, which must not change the bytes.

    Raises BadPhoto for a storage without photos and for a malformed ``persons.csv``, ValueError
    when neither photos nor identities are given.
    """
    found: list[PhotoRef] = []
    if photos is not None:
        listing = find_photos(photos)
        found = list(listing.photos)
        if listing.passed_over:
            _log.warning("%s", describe_passed_over(listing.passed_over))
    near_duplicates: tuple[tuple[str, ...], ...] = ()
    if photos is not None and not found:
        if is_missing(photos):
            raise BadPhoto(f"there is no folder {photos.uri}")
        raise BadPhoto(f"no photo ({', '.join(sorted(IMAGE_SUFFIXES))}) in {photos.uri}")
    if not found and identities < 1:
        raise ValueError("nothing to make: neither photos nor identities to sample (--identities)")
    if photos is not None:
        found, groups = name_split_groups(photos, found)
        near_duplicates = groups.near_duplicates
    if shard_subjects is None:
        shard_subjects = min(
            max(-(-(len(found) + identities) // SHARD.few), 1), fill_shard(options)
        )
    plan = make_plan(
        found,
        identities=identities,
        seed=seed,
        options=options.as_dict(),
        assets={name: digest(name) for name in (options.model, options.albedo)},
        renderer=backends.identity(options.renderer),
        shard_subjects=shard_subjects,
    )
    return plan, near_duplicates


def fill_shard(options: Options) -> int:
    """The number of subjects that fill a shard: what a worker holds grows with the pixels."""
    return max(round(SHARD.views * (256 / options.size) ** 2 / options.views), 1)


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a plan."""

    photos: int
    unlabelled: int  # of the photos, which will fail: no landmarks are beside them
    identities: int
    shards: int
    rows: int
    bytes: float
    seconds: float  # on one core
    near_duplicates: tuple[tuple[str, ...], ...] = ()  # groups of photo ids

    def lines(self, workers: int) -> list[str]:
        """The estimate in words, a line each."""
        duration = describe_duration(self.seconds / max(workers, 1))
        size = f"about {self.bytes / 1e6:.0f} MB" if self.bytes >= 1e6 else "less than 1 MB"
        lines = [
            f"{counted(self.photos, 'photo')} and "
            f"{counted(self.identities, 'sampled identity', 'sampled identities')} in "
            f"{counted(self.shards, 'shard')}",
            f"{counted(self.rows, 'view')}, {size}",
            f"{duration} with {counted(max(workers, 1), 'worker')}",
        ]
        if self.unlabelled:
            lines.append(
                f"photos without landmarks beside them, which will fail: {self.unlabelled}; "
                "`dff label` makes some"
            )
        if self.near_duplicates:
            lines.append(
                f"{describe_near_duplicates(self.near_duplicates)}; each group is in one split"
            )
        return lines


def check_labels(expected: Estimate, plan: Plan, budget: float) -> None:
    """Raise BudgetExceeded where photos without landmarks alone exceed the failure ``budget``."""
    if expected.unlabelled > budget * plan.subjects:
        raise BudgetExceeded(
            f"{expected.unlabelled} of {counted(plan.subjects, 'input')} lack landmarks, more than "
            f"the budget of {budget:.0%}: label the photos first (`dff label`), or raise "
            "--failure-budget"
        )


def estimate_cost(plan: Plan, near_duplicates: tuple[tuple[str, ...], ...] = ()) -> Estimate:
    """Estimate the cost of a plan.

    Counts are exact, if no other photo fails; bytes and seconds are rough figures of one machine.
    """
    photos, identities = len(plan.photos), plan.identities
    unlabelled = sum(ref.landmark_key is None for ref in plan.photos)
    views, size = int(plan.options["views"] or 0), float(plan.options["size"] or 0)
    rows, area = (plan.subjects - unlabelled) * views, (size / 256.0) ** 2
    seconds = (photos - unlabelled) * COST.invert_seconds * area + rows * COST.view_seconds * area
    return Estimate(
        photos,
        unlabelled,
        identities,
        len(plan.shards),
        rows,
        rows * COST.view_bytes * area,
        seconds,
        near_duplicates,
    )


@dataclass(frozen=True)
class Summary:
    """The outcome of a synthesis; without a manifest it was a dry run."""

    uri: str
    plan: Plan
    estimate: Estimate
    manifest: Manifest | None


def synthesize(
    photos: str | None,
    out: str,
    *,
    views: int = 20,
    identities: int = 0,
    seed: int = 0,
    size: int = 256,
    workers: int = 1,
    address: str | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
    photo_terms: str = PHOTO_TERMS,
    model: str = "open-head",
    albedo: str = "open-albedo",
    renderer: str = "zbuffer",
    profile_share: float = PROFILE_SHARE,
    deformed: float = 0.0,
    closed_eyes: float = 0.0,
    config: job.RunConfig = job.DEFAULT,
    shard_subjects: int | None = None,
    dry_run: bool = False,
    progress: bool = False,
    watch: Callable[[Plan, Estimate], None] = lambda plan, estimate: None,
) -> Summary:
    """Make a dataset at ``out`` from the photos at ``photos`` and sampled identities.

    An interrupted one is completed. ``access``: as whom the photos are read; the dataset is written
    with credentials in any case, which is tried before the photos are read.

    One worker and no ``address`` run in this process, anything else on Ray: the cluster at
    ``address``, or a private local one of ``workers`` CPUs. The bytes are the same. ``watch`` gets
    the plan and its cost before the work begins. Raises BadPhoto for a place without photos;
    BudgetExceeded, before the work where too many photos have no landmarks; ValueError, BadDataset,
    StorageError, ClusterError.
    """
    options = Options(
        views=views,
        size=size,
        photo_terms=photo_terms,
        model=model,
        albedo=albedo,
        renderer=renderer,
        profile_share=profile_share,
        deformed=deformed,
        closed_eyes=closed_eyes,
    )
    source = None
    if photos is not None:
        source = open_storage(photos, endpoint_url=endpoint_url, access=access)
    # Whoever reads a public bucket without credentials writes with their own.
    target = open_storage(out, endpoint_url=endpoint_url, access=replace(access, anonymous=False))
    if not dry_run and not target.exists(MANIFEST):
        target.check_writable()
    plan, near_duplicates = plan_synthesis(
        source, identities=identities, seed=seed, options=options, shard_subjects=shard_subjects
    )
    expected = estimate_cost(plan, near_duplicates)
    watch(plan, expected)
    if dry_run:
        return Summary(target.uri, plan, expected, None)
    if not target.exists(MANIFEST):
        check_labels(expected, plan, config.budget)
    work = WorkSpec.create(
        ROW_MAKER,
        photos=None if photos is None else _make_absolute(photos),
        endpoint_url=endpoint_url,
        anonymous=access.anonymous,
        request_payer=access.request_payer,
        seed=seed,
        **options.as_dict(),
    )
    if address is None and workers <= 1:
        manifest = job.run(plan, target, work.build(), config=config, progress=progress)
        write_cards(target, manifest, plan.options)
        return Summary(target.uri, plan, expected, manifest)
    # Ray takes seconds to import, and is optional here.
    from dff.infra.clusters.cluster import check_shared, check_visible, connected
    from dff.pipeline.job import ray as fan_out

    with connected(address, workers=None if address else workers):
        if address and isinstance(target, LocalStorage):
            check_shared(target.root, "OUT")
        if address and isinstance(source, LocalStorage):
            check_visible(source.root, "PHOTOS")
        manifest = fan_out.run(
            plan,
            target,
            work,
            workers=workers if workers > 1 else None,
            config=config,
            progress=progress,
        )
    write_cards(target, manifest, plan.options)
    return Summary(target.uri, plan, expected, manifest)


def _make_absolute(place: str) -> str:
    """A URI, or the absolute path of a folder, which workers elsewhere find too."""
    return place if "://" in place else str(Path(place).absolute())
