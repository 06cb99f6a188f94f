"""STAND-IN, replaced when the schedulers land."""
import json
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from ..config import FrozenConfig
class Scheduler: pass
class EulerDiscreteScheduler(Scheduler):
    def __init__(self, **k): self.config=FrozenConfig(k)
    @classmethod
    def from_config(cls, c, **k): return cls(**{**c, **k})
    def set_timesteps(self, n):
        b=np.linspace(0.00085**.5,0.012**.5,1000,dtype=np.float32)**2
        ac=np.cumprod(1-b); s=((1-ac)/ac)**.5
        t=(np.arange(0,n)*(1000//n)).round()[::-1].astype(np.float32)+1
        self.sigmas=np.append(np.interp(t,np.arange(1000),s),0).astype(np.float32); self.timesteps=t; self.i=0
        self.init_noise_sigma=(self.sigmas.max()**2+1)**.5
    def scale_model_input(self,x,t):
        return x/(self.sigmas[self.i]**2+1)**.5
    def step(self,o,t,x,generator=None):
        y=x+o*(self.sigmas[self.i+1]-self.sigmas[self.i]); self.i+=1
        return SimpleNamespace(prev_sample=y)
DDIMScheduler=DDPMScheduler=PNDMScheduler=EulerDiscreteScheduler
def load_scheduler(p): return EulerDiscreteScheduler(**json.loads((Path(p)/'scheduler_config.json').read_text()))
def scheduler_class(n): return EulerDiscreteScheduler
