"""A grafted view exchanges parts and shares everything else; the original never changes."""

import copy

import pytest
import torch
from torch import nn

from vprompt.backbones.graft import graft


class Residual(nn.Module):
    """A module with a buffer, a submodule tree two levels deep, and a plain attribute."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
            nn.ModuleDict({"left": nn.Linear(4, 4), "right": nn.Linear(4, 4)}),
        )
        self.register_buffer("offset", torch.arange(4.0))
        self.gain = nn.Parameter(torch.full((4,), 0.5))
        self.times = 2

    def forward(self, x):
        x = self.stages[0](self.stem(x) + self.offset)
        for _ in range(self.times):
            x = x + self.stages[1]["left"](x) * self.gain
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Residual()


def x():
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def tree(module):
    return {name: (id(child), tuple(child._modules)) for name, child in module.named_modules()}


def test_the_part_runs_in_the_view_and_the_original_is_untouched(net):
    before, answer, state = tree(net), net(x()), copy.deepcopy(net.state_dict())
    part = nn.Linear(4, 4)
    view = graft(net, {"stages.1.left": part})
    expected = copy.deepcopy(net)
    expected.stages[1]["left"] = part
    assert torch.equal(view(x()), expected(x()))
    assert not torch.equal(view(x()), answer)
    assert torch.equal(net(x()), answer)
    assert tree(net) == before
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert type(view) is type(net)
    assert view is not net


def test_only_the_way_to_a_part_is_new(net):
    part = nn.Identity()
    view = graft(net, {"stages.0.1": part})
    assert view.stages[0][1] is part
    assert view.stages is not net.stages
    assert view.stages[0] is not net.stages[0]
    assert type(view.stages[0]) is nn.Sequential
    assert view.stages[0][0] is net.stages[0][0]
    assert view.stages[1] is net.stages[1]
    assert view.stem is net.stem
    assert view.gain is net.gain
    assert view.offset is net.offset
    assert view.times == net.times


def test_nothing_is_copied(net):
    view = graft(net, {"stages.0.1": nn.ReLU(), "stages.1.left": nn.Identity()})
    ours = {p.data_ptr() for p in net.parameters()}
    assert {p.data_ptr() for p in view.parameters()} <= ours
    assert "stages.1.left.weight" not in dict(view.named_parameters())
    assert "stages.1.right.weight" in dict(view.named_parameters())


def test_several_parts_under_one_parent_share_their_shells(net):
    left, right, tanh = nn.Identity(), nn.Flatten(), nn.ReLU()
    view = graft(net, {"stages.1.left": left, "stages.0.1": tanh, "stages.1.right": right})
    assert view.stages[1]["left"] is left
    assert view.stages[1]["right"] is right
    assert view.stages[0][1] is tanh


def test_a_part_may_wrap_what_it_replaces(net):
    view = graft(net, {"stem": nn.Sequential(net.stem, nn.ReLU())})
    expected = copy.deepcopy(net)
    expected.stem = nn.Sequential(copy.deepcopy(net.stem), nn.ReLU())
    assert torch.equal(view(x()), expected(x()))


def test_no_parts_give_an_equal_view(net):
    view = graft(net, {})
    assert view is not net
    assert torch.equal(view(x()), net(x()))


def test_sequential_indexing_iteration_and_length(net):
    stack = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    part = nn.Tanh()
    view = graft(stack, {"1": part})
    assert view[1] is part
    assert view[-2] is part
    assert list(view) == [stack[0], part, stack[2]]
    assert len(view) == 3
    assert isinstance(stack[1], nn.ReLU)
    assert torch.equal(view(x()), stack[2](part(stack[0](x()))))
    assert isinstance(view[1:], nn.Sequential)
    assert view[1:][0] is part


def test_changing_the_views_children_leaves_the_original(net):
    view = graft(net, {"stages.0.1": nn.ReLU()})
    view.stages[0][1] = nn.Sigmoid()
    view.added = nn.Linear(1, 1)
    assert isinstance(net.stages[0][1], nn.Tanh)
    assert not hasattr(net, "added")


@pytest.mark.parametrize(
    "path", ["nothing", "stages.2", "stages.0.7", "stem.weight", "stages.1.middle", "gain", "times"]
)
def test_a_path_that_names_no_submodule(net, path):
    before, answer = tree(net), net(x())
    with pytest.raises(KeyError) as error:
        graft(net, {"stem": nn.Identity(), path: nn.Identity()})
    assert path in str(error.value)
    assert tree(net) == before
    assert torch.equal(net(x()), answer)


def test_moving_the_original_moves_the_view(net):
    view = graft(net, {"stages.0.1": nn.ReLU()})
    net.double()
    assert {p.dtype for p in view.parameters()} == {torch.float64}
    assert view.offset.dtype == torch.float64
    assert view.gain is net.gain
    expected = copy.deepcopy(net)
    expected.stages[0][1] = nn.ReLU()
    assert torch.equal(view(x().double()), expected(x().double()))
    net.to(torch.bfloat16)
    assert view.offset is net.offset
    assert view.offset.dtype == torch.bfloat16


def test_moving_to_another_device_moves_the_view(net):
    view = graft(net, {"stages.0.1": nn.ReLU()})
    net.to("meta")
    assert {p.device.type for p in view.parameters()} == {"meta"}
    assert view.offset.device.type == "meta"


def test_new_values_of_the_original_show_in_the_view(net):
    view = graft(net, {"stages.0.1": nn.ReLU()})
    with torch.no_grad():
        net.gain.mul_(3)
    net.offset = torch.full((4,), 7.0)
    net.stem.weight = nn.Parameter(torch.zeros(4, 4))
    assert torch.equal(view.gain, net.gain)
    assert torch.equal(view.offset, torch.full((4,), 7.0))
    assert view.stem.weight is net.stem.weight
    other = Residual()
    net.load_state_dict(other.state_dict())
    assert torch.equal(view.gain, other.gain)
    assert torch.equal(view.offset, other.offset)


def test_gradients_through_the_view_reach_the_originals_parameters(net):
    view = graft(net, {"stages.0.1": nn.ReLU()})
    view(x()).sum().backward()
    assert net.stem.weight.grad is not None
    assert net.gain.grad is not None
    assert net.stages[1]["right"].weight.grad is None


def test_views_of_one_original_do_not_see_each_other(net):
    one, other = graft(net, {"stages.0.1": nn.ReLU()}), graft(net, {"stages.0.1": nn.Sigmoid()})
    nested = graft(one, {"stem": nn.Identity()})
    assert isinstance(one.stages[0][1], nn.ReLU)
    assert isinstance(other.stages[0][1], nn.Sigmoid)
    assert isinstance(nested.stages[0][1], nn.ReLU)
    assert isinstance(nested.stem, nn.Identity)
    assert one.stem is net.stem


def test_a_deep_copy_of_the_view_is_independent(net):
    view = graft(net, {"stages.0.1": nn.ReLU()})
    twin = copy.deepcopy(view)
    answer = view(x())
    assert torch.equal(twin(x()), answer)
    with torch.no_grad():
        twin.gain.zero_()
    assert torch.equal(view(x()), answer)


# ── other parameters ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_parameter_is_exchanged_in_the_view_only(net):
    before, answer, state = tree(net), net(x()), copy.deepcopy(net.state_dict())
    bias, gain = nn.Parameter(torch.full((4,), 2.0)), nn.Parameter(torch.zeros(4))
    view = graft(net, {"stages.0.1": nn.ReLU()}, parameters={"stages.1.left.bias": bias, "gain": gain})
    expected = copy.deepcopy(net)
    expected.stages[0][1] = nn.ReLU()
    expected.stages[1]["left"].bias, expected.gain = bias, gain
    assert torch.equal(view(x()), expected(x()))
    assert view.stages[1]["left"].bias is bias
    assert view.stages[1]["left"].weight is net.stages[1]["left"].weight
    assert view.stages[1]["right"] is net.stages[1]["right"]
    assert torch.equal(net(x()), answer)
    assert tree(net) == before
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_views_with_other_parameters_do_not_see_each_other(net):
    ours = [nn.Parameter(torch.full((4,), value)) for value in (1.0, 2.0)]
    one, other = (graft(net, {}, parameters={"gain": gain}) for gain in ours)
    nested = graft(one, {"stages.0.1": nn.ReLU()})
    assert one.gain is nested.gain is ours[0]
    assert other.gain is ours[1]
    nested(x()).sum().backward()
    assert ours[0].grad is not None
    assert ours[1].grad is None
    assert net.gain.grad is None
    twin = copy.deepcopy(nested)
    with torch.no_grad():
        twin.gain.zero_()
    assert torch.equal(ours[0], torch.ones(4))


@pytest.mark.parametrize("path", ["nothing", "offset", "times", "stem", "stem.gain", "stages.0.1.weight", "stages.7.x"])
def test_a_path_that_names_no_parameter(net, path):
    before = tree(net)
    with pytest.raises(KeyError) as error:
        graft(net, {}, parameters={"gain": nn.Parameter(torch.zeros(4)), path: nn.Parameter(torch.zeros(4))})
    assert path in str(error.value)
    assert tree(net) == before
