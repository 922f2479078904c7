import openai

# Configure client
openai.api_base = "http://localhost:8000/v1"
openai.api_key = "none"

# List models
models = openai.Model.list()

for model in models.data:
    print(f"Model ID: {model.id}")
    print(f"Created: {model.created}")
    print(f"Owned by: {model.owned_by}")
