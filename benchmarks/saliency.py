"""Grad-CAM of a set of images against one bare forward pass over it, and against pytorch-grad-cam, torchcam and captum."""
import argparse
import warnings
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
    "Each a function of a batch that gives its Grad-CAM maps for class 0; peers as their own documentation has it"
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCam
    found = feature_layer(model, torch.randn(1, 3, args.size, args.size), layer)
    def bare(x):
        with torch.no_grad(): model(x)
    def ours(x): saliency_maps(model, x, 0, layer=found)
    def pgc(x):
        with GradCAM(model, [found.module]) as cam: cam(x, [ClassifierOutputTarget(0)]*len(x))
    def torchcam(x):
        with TorchCam(model, found.name) as cam: cam([0]*len(x), model(x))
    def captum(x): LayerGradCam(model, found.module).attribute(x, 0)
    return {'bare forward': bare, 'proxy_attention': ours, 'pytorch-grad-cam': pgc, 'torchcam': torchcam, 'captum': captum}


figures = {}
for name,model,layer in (('resnet18', torchvision.models.resnet18(num_classes=10), 'layer4'),
                         ('tf_efficientnet_lite0', timm.create_model('tf_efficientnet_lite0', num_classes=10), 'bn2')):
    torch.manual_seed(0)
    batches = [torch.randn(args.batch, 3, args.size, args.size) for _ in range(args.images // args.batch)]
    seconds = interleaved(contestants(model.eval(), layer), args.rounds, batches)
    print(f"\n{name}: {args.images} images at {args.size}, batch {args.batch}, {args.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'':18}{'seconds':>9}{'/ bare forward':>16}{'/ proxy_attention':>19}")
    for k,s in seconds.items(): print(f"{k:18}{median(s):9.2f}{ratio(s, seconds['bare forward']):16.2f}{ratio(s, seconds['proxy_attention']):19.2f}")
    figures[name] = {k: dict(seconds=round(median(s), 3), per_bare=round(ratio(s, seconds['bare forward']), 3),
                             per_ours=round(ratio(s, seconds['proxy_attention']), 3)) for k,s in seconds.items()}
save_record('saliency', figures, args.save)
