"""The weights that a merged folder holds, without the command around them."""

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from detox_rl.model.merged import save_merged
from detox_rl.model.policy import Policy
from detox_rl.model.t5 import load_base


def test_weights_are_the_bases_plus_what_was_folded_and_trained(tiny_t5, tiny_adapter_everywhere, tmp_path):
    """W + warm start + adapter, on the layers where they sit, and W everywhere else; the policy is left as it was."""
    policy = Policy(tiny_t5, tiny_adapter_everywhere)
    for parameter in policy.trainable().values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    save_merged(policy, AutoTokenizer.from_pretrained(tiny_t5), tmp_path, 8, torch.float32)
    found, base = load_file(tmp_path / "model.safetensors"), load_base(tiny_t5).state_dict()
    assert found.keys() == {name for name in base if "embed_tokens" not in name}
    trained = {name.partition(".lora_A")[0].removeprefix("t5.") for name in policy.trainable() if "lora_A" in name}
    assert trained and policy.folded.keys() > trained  # the encoder has the warm start alone
    for name, weight in found.items():
        layer, expected = name.removesuffix(".weight"), base[name]
        if layer in policy.folded:
            down, up = policy.folded[layer]
            expected = expected + up @ down
        if layer in trained:
            lora = policy.t5.get_submodule(layer)
            expected = (
                expected + lora.scaling["default"] * lora.lora_B["default"].weight @ lora.lora_A["default"].weight
            )
        torch.testing.assert_close(weight, expected)
        assert (layer in policy.folded) == (not torch.equal(weight, base[name]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
