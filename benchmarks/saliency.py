"""Time Grad-CAM, with the layer given and by the default call, and expected gradients, against a bare forward pass, pytorch-grad-cam, torchcam and captum."""
import argparse
import warnings
from importlib.util import find_spec
from statistics import median

from common import interleaved, ratio, save_record

warnings.filterwarnings('ignore')
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402

from proxy_attention.layers import feature_layer  # noqa: E402
from proxy_attention.saliency import saliency_maps  # noqa: E402

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--images', type=int, default=256)
p.add_argument('--batch', type=int, default=32)
p.add_argument('--size', type=int, default=224)
p.add_argument('--rounds', type=int, default=5)
p.add_argument('--save', action='store_true', help='write results/bench_saliency.json')
args = p.parse_args()


def contestants(model, layer):
    "Functions of a batch by name, each of which computes maps for class 0: Grad-CAM's unless it says otherwise"
    found = feature_layer(model, torch.randn(1, 3, args.size, args.size), layer)
    def bare(x):
        with torch.no_grad(): model(x)
    def layer_given(x): saliency_maps(model, x, 0, layer=found)
    def default(x): saliency_maps(model, x, 0)
    def expected(x): saliency_maps(model, x, 0, 'expected_gradients')
    ours = {'layer given': layer_given, 'default call': default, 'expected gradients': expected}
    return {'bare forward': bare, **ours, **peers(model, found)}


def peers(model, found):
    "The other libraries that are installed, called as their own documentation has it"
    there = {}
    if find_spec('pytorch_grad_cam'):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        def pgc(x):
            with GradCAM(model, [found.module]) as cam: cam(x, [ClassifierOutputTarget(0)]*len(x))
        there['pytorch-grad-cam'] = pgc
    if find_spec('torchcam'):
        from torchcam.methods import GradCAM as TorchCam
        def torchcam(x):
            with TorchCam(model, found.name) as cam: cam([0]*len(x), model(x))
        there['torchcam'] = torchcam
    if find_spec('captum'):
        from captum.attr import LayerGradCam
        def captum(x): LayerGradCam(model, found.module).attribute(x, 0)
        there['captum'] = captum
    return there


figures = {}
for name,model,layer in (('resnet18', torchvision.models.resnet18(num_classes=10), 'layer4'),
                         ('tf_efficientnet_lite0', timm.create_model('tf_efficientnet_lite0', num_classes=10), 'bn2')):
    torch.manual_seed(0)
    batches = [torch.randn(args.batch, 3, args.size, args.size) for _ in range(args.images // args.batch)]
    seconds = interleaved(contestants(model.eval(), layer), args.rounds, batches)
    print(f"\n{name}: {args.images} images at {args.size}, batch {args.batch}, {args.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'':18}{'seconds':>9}{'/ bare forward':>16}{'/ layer given':>15}")
    figures[name] = {}
    for k,s in seconds.items():
        per_bare, per_ours = ratio(s, seconds['bare forward']), ratio(s, seconds['layer given'])
        print(f"{k:18}{median(s):9.2f}{per_bare:16.2f}{per_ours:15.3f}")
        figures[name][k] = dict(seconds=round(median(s), 3), per_bare=round(per_bare, 3), per_ours=round(per_ours, 3))
save_record('saliency', figures, args.save)
