"""Streams the words of a text back, one response each, marked with the worker's name. Has a child, as a stage has."""

import json
import subprocess
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.worker = parameters["worker"]["string_value"]
        assert Path(parameters["deployment_file"]["string_value"]).exists()
        self.child = subprocess.Popen(["sleep", "600"])

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0].decode()
            sender = request.get_response_sender()
            for word in text.split():
                tensor = pb_utils.Tensor("word", np.array([f"{self.worker}:{word}".encode()], dtype=object))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
