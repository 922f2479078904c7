fetch('http://localhost:8000/v1/models')
  .then(response => response.json())
  .then(data => {
    console.log('Available models:');
    data.data.forEach(model => {
      console.log(`- ${model.id}`);
    });
  });
