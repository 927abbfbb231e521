"""What a compression run can be told, and the validation of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dns_onnx.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Preprocess(_Strict):
    """How stored data become model input: `(x * scale - mean) / std`, then the layout.

    mean, std: one number, or one a channel.  layout: `nhwc` says that the stored images are
    channels-last and the model wants channels-first; `as-is` leaves the axes alone.
    input: the model input that it applies to; the first one where it is not given.
    """

    scale: float = 1.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    layout: Literal["as-is", "nhwc"] = "as-is"
    input: str | None = None

    @model_validator(mode="after")
    def _std_is_positive(self) -> Preprocess:
        stds = self.std if isinstance(self.std, tuple) else (self.std,)
        if any(s <= 0 for s in stds):
            raise ValueError("std must be positive")
        return self


class Data(_Strict):
    """Which part of the training data teaches, which part decides, and in what order.

    holdout: fraction (below 1) or number of training rows kept out of training; every decision of
        the run is made on them.  0 is allowed where the run has nothing to decide.  Where held-out
        rows are given (--val), it counts for nothing.
    shift: augmentation; every image moves by up to this many pixels along each axis, at random.
        auto: 1 where a target is pursued and labels teach to classify single images of 16 x 16
        pixels or more (`prepare.automatic_shift`), 0 elsewhere.
    shape: whole shapes of inputs that leave sizes open, by input name.
    """

    batch: int = Field(64, ge=1)
    holdout: float = Field(0.1, ge=0)
    shuffle: bool = True
    shift: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    shape: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """How far images move; 0 while that is left open."""
        return 0 if self.shift == "auto" else self.shift


class Solver(_Strict):
    """The optimizer.  Learning rate policies are Caffe's (`base_lr` is `lr`), and cosine.

    fixed: lr.  step: lr * gamma^floor(i / stepsize).  exp: lr * gamma^i.
    inv: lr * (1 + gamma * i)^-power.  multistep: lr * gamma^(steps passed in stepvalue).
    poly: lr * (1 - i / iterations)^power.  sigmoid: lr / (1 + exp(-gamma * (i - stepsize))).
    cosine: half a cosine from lr to 0.
    warmup: the first `warmup` iterations come up to the policy in equal steps.
    tail: the last `tail` iterations go down to 0 along half a cosine, from where the policy is.
    type, lr: where a run has a target and neither is given, a short probe chooses both (`probe`).
    """

    type: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(0.01, gt=0)
    policy: Literal["fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid", "cosine"] = "inv"
    gamma: float = 1e-4
    power: float = 0.75
    stepsize: int = Field(10_000, ge=1)
    stepvalue: tuple[int, ...] = ()
    warmup: int = Field(0, ge=0)
    tail: int = Field(0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    bias_lr: float = Field(2.0, ge=0, description="factor on the learning rate of biases")


MaskStart = Literal["kept", "cut", "nonzero"] | str


class LayerRule(_Strict):
    """Surgery settings of the layers that `match` names; a later rule overrides an earlier one.

    match: ONNX node name or weight initializer name, or a pattern with `*` and `?`.
    weight_mask, bias_mask: the first masks: `kept` (all ones), `cut` (all zeros), `nonzero` (the
        entries that are not zero in the model), or the path of a bool `.npy` file.
    """

    match: str
    prune: bool | None = None
    prune_bias: bool | None = None
    granularity: str | None = None
    sparsity: float | None = Field(None, gt=0, lt=1)
    c_rate: float | None = None
    gamma: float | None = Field(None, ge=0)
    power: float | None = Field(None, ge=0)
    iter_stop: int | None = None
    ramp_from: float | None = None
    ramp_iters: int | None = Field(None, ge=0)
    weight_mask: MaskStart | None = None
    bias_mask: MaskStart | None = None

    def matches(self, *names: str) -> bool:
        """Whether the rule speaks of a layer that bears one of these names."""
        pattern = self.match.replace("[", "[[]")  # only * and ? are special: names hold brackets
        return any(name == self.match or fnmatchcase(name, pattern) for name in names if name)


class LayerSettings(_Strict):
    """Surgery settings of one layer.  The fields are those of LayerRule.

    granularity: what is cut as one: `element`, blocks such as `1x4` (1 output by 4 inputs), `2:4`
        (at most 2 of every 4 along the inputs), or `channel`.
    sparsity: the layer's own goal, where the run has one (see Target).
    iter_stop: default 70 % of the iterations.
    c_rate: the paper's thresholds, constant from the start, unless ramp_from and ramp_iters say
        otherwise.  Where no layer has a c_rate, thresholds follow from the target.
    """

    prune: bool = True
    prune_bias: bool = True
    granularity: str = "element"
    sparsity: float | None = Field(None, gt=0, lt=1)
    c_rate: float | None = None
    gamma: float = Field(1e-4, ge=0)
    power: float = Field(1.0, ge=0)
    iter_stop: int | None = None
    ramp_from: float | None = None
    ramp_iters: int | None = Field(None, ge=0)
    weight_mask: MaskStart = "kept"
    bias_mask: MaskStart = "kept"


class Train(_Strict):
    """The training loop.

    output: the ONNX value, or values, that learn; default: the first float output of the model, or
        without labels all that a gradient reaches.  The loss attaches before a final Softmax or
        Sigmoid.
    loss: against labels: cross-entropy, binary, mse, l1, ctc or package.module:function; auto takes
        the one that the labels and the end of the model suggest.
    metric: what held-out data are judged by: accuracy, topK, f1, miou, mse, psnr, ler, agreement,
        relative-error or package.module:function; auto takes the one that goes with the loss.
    ignore_label: the class number that neither counts.
    eval_every: iterations between two looks at the held-out data, once the masks are frozen; the
        state that does best there is the result.  0: the last state is the result.
    precision: of the forward and backward pass; the weights stay float32.
    shard: divide weights, masks, gradients and momenta over the processes of torchrun (FSDP2).
    compile: let torch.compile fuse the graph; pays on CUDA and for long runs.
    """

    iterations: int = Field(20_000, ge=1)
    output: str | tuple[str, ...] | None = None
    loss: str = "auto"
    metric: str = "auto"
    ignore_label: int = -100
    eval_every: int = Field(1000, ge=0)
    log_every: int = Field(100, ge=1)
    checkpoint_seconds: float = Field(30.0, gt=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    shard: bool = False

    @property
    def outputs(self) -> list[str]:
        """The values of `output`, none where it is not given."""
        return [self.output] if isinstance(self.output, str) else list(self.output or ())


class Distill(_Strict):
    """The original model as teacher.

    weight: its part of the loss, from 0 to 1; default: 1 where there are no labels, else 0.  Where
        a run has a target, labels teach to classify and no solver is given, a probe chooses.
    loss: kl, binary, mse (relative to the teacher's), l1 (the same), cosine or
        package.module:function; auto takes kl for class scores, binary for scores before a Sigmoid,
        mse elsewhere.
    temperature: softens class scores, of both.
    """

    weight: float | None = Field(None, ge=0, le=1)
    loss: str = "auto"
    temperature: float = Field(1.0, gt=0)


class Target(_Strict):
    """What a run shall reach; the thresholds follow.

    compression: entries under surgery, over the entries kept.  sparsity: the share that is cut.
        One of them at most; with neither, the smallest model is searched for that keeps to the
        budget.
    max_drop: how much worse than the original the model may be on held-out data, in percentage
        points (or what `runtime.metrics` says of the metric); default 0.1.  min_metric: how bad
        the metric itself may be, as a fraction (0.99, not 99 %).
    margin: standard errors (`doubt`) that a model must stay within the budget by; more than 0 keeps
        luck on few held-out rows from passing for quality.
    reference: what drops are counted from: auto looks whether the original knows the held-out rows
        by heart, and by how much (`reference`); original takes its own metric as it is.
    curvature: whose curvature, in training, says what cutting an entry costs: the mean over its
        layer, or the entry's own.
    trials: at most so many; iterations are those of one trial.  growth: factor on the compression
        from trial to trial while all goes well.  longer: how often the iterations of a trial double
        where a limit is roughly known; default: twice where a trial is short even then (`pace`),
        else once.  precision: to this factor the longest trials find the highest compression
        within the budget.
    """

    compression: float | None = Field(None, gt=1)
    sparsity: float | None = Field(None, gt=0, lt=1)
    max_drop: float | None = Field(None, allow_inf_nan=False)
    min_metric: float | None = Field(None, allow_inf_nan=False)
    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    reference: Literal["auto", "original"] = "auto"
    curvature: Literal["layer", "entry"] = "layer"
    trials: int = Field(16, ge=1)
    growth: float = Field(4.0, gt=1)
    precision: float = Field(1.1, gt=1)
    longer: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_goal(self) -> Target:
        if self.compression is not None and self.sparsity is not None:
            raise ValueError("expected compression or sparsity, got both")
        return self

    @property
    def density(self) -> float | None:
        """The share of entries to keep; None where it is searched for."""
        if self.compression is not None:
            return 1.0 / self.compression
        return None if self.sparsity is None else 1.0 - self.sparsity


class Config(_Strict):
    """Everything that decides a run; `seed` is the source of every random draw."""

    name: str = "custom"
    seed: int = Field(0, ge=0)
    data: Data = Data()
    preprocess: Preprocess = Preprocess()
    train: Train = Train()
    distill: Distill = Distill()
    solver: Solver = Solver()
    target: Target = Target()
    surgery: LayerSettings = LayerSettings()
    layer: tuple[LayerRule, ...] = ()

    @property
    def has_thresholds(self) -> bool:
        """Whether thresholds are given (the paper's way) rather than a target."""
        return self.surgery.c_rate is not None or any(r.c_rate is not None for r in self.layer)

    @model_validator(mode="after")
    def _thresholds_or_target(self) -> Config:
        own = [r.match for r in self.layer if r.sparsity is not None]
        if self.has_thresholds and (self.target.density is not None or own):
            raise ValueError(
                "expected thresholds (c_rate) or a target (compression, sparsity), got both"
            )
        if self.target.margin and (self.has_thresholds or self.target.density is not None):
            raise ValueError(
                "expected a margin for a budget (max_drop, min_metric), got one with a size or "
                "thresholds, which no budget limits"
            )
        return self

    @model_validator(mode="after")
    def _tail_fits(self) -> Config:
        if self.solver.tail > self.train.iterations:
            raise ValueError(
                f"solver.tail: expected at most train.iterations ({self.train.iterations}), "
                f"got {self.solver.tail}"
            )
        return self

    def scaled(self, iterations: int) -> Config:
        """The same schedule over another number of iterations: what counts in them is scaled."""
        factor = iterations / self.train.iterations
        values = self.model_dump(exclude_unset=True)  # what was not said stays unsaid
        values["train"] = {**values.get("train", {}), "iterations": iterations}
        solver, surgery = values.setdefault("solver", {}), values.setdefault("surgery", {})
        for table in (solver, surgery, *values.get("layer", ())):
            for key in ("warmup", "tail", "stepsize", "iter_stop", "ramp_iters"):
                if (table.get(key) or 0) > 0:
                    table[key] = max(1, int(table[key] * factor))
        solver.setdefault("stepsize", max(1, int(self.solver.stepsize * factor)))
        solver["stepvalue"] = [int(i * factor) for i in self.solver.stepvalue]
        return Config.model_validate(values)

    def layer_settings(self, *names: str) -> LayerSettings:
        """Settings of the layer that bears these names: the defaults, then each rule in turn."""
        settings = self.surgery.model_dump()
        for rule in self.layer:
            if rule.matches(*names):
                given = rule.model_dump(exclude={"match"}, exclude_none=True)
                settings.update(given)
        if settings["iter_stop"] is None:
            settings["iter_stop"] = int(0.7 * self.train.iterations)
        defaults = {"c_rate": 1.0, "ramp_from": 0.0, "ramp_iters": 0}
        missing = {key: value for key, value in defaults.items() if settings[key] is None}
        return LayerSettings(**{**settings, **missing})

    def unused_rules(self, layers: Iterable[tuple[str, ...]]) -> list[str]:
        """Patterns of rules that name no layer at all."""
        layers = list(layers)
        return [r.match for r in self.layer if not any(r.matches(*names) for names in layers)]


def parse_config(values: Mapping[str, Any], where: str) -> Config:
    """Validate plain values.  where: the file that errors name.

    Raises ConfigError, naming the key and what is allowed there.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, e) for e in error.errors())) from None


def _explain(where: str, error: Any) -> str:
    """One pydantic complaint as `file: key: expected, got`."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # a validator of ours: it says all by itself
        said = str(error["ctx"]["error"])
        return f"{where}: {key}: {said}" if key else f"{where}: {said}"
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(error["loc"][:-1]))
        return f"{where}: {key}: unknown key; allowed here: {allowed}"
    return f"{where}: {key}: {error['msg']}, got {error['input']!r}"


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at `loc` in a configuration."""
    tables: dict[str, type[BaseModel]] = {
        "data": Data, "preprocess": Preprocess, "train": Train, "distill": Distill,
        "solver": Solver, "target": Target, "surgery": LayerSettings, "layer": LayerRule,
    }  # fmt: skip
    model = tables.get(str(loc[0]), Config) if loc else Config
    return list(model.model_fields)
