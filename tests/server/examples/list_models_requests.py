import requests

response = requests.get("http://localhost:8000/v1/models")
models = response.json()

print(f"Available models: {len(models['data'])}")
for model in models["data"]:
    print(f"- {model['id']}")
